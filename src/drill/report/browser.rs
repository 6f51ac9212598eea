//! The page in a real browser: what is on it, and that nothing is drawn over anything else.

use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;

use super::{Report, html, samples};

/// Where each text of each picture ended up. The page itself has no script; this one is put in for the measuring.
const MEASURE: &str = r#"<script>
const box = e => { const r = e.getBoundingClientRect(); return {text: e.textContent, x: r.x, y: r.y, width: r.width, height: r.height}; };
const pictures = [...document.querySelectorAll("svg")].map(svg => ({
  frame: box(svg), texts: [...svg.querySelectorAll("text")].map(box), shapes: svg.querySelectorAll("rect").length,
}));
const out = document.createElement("pre");
out.id = "measured";
out.textContent = JSON.stringify({pictures, page: document.documentElement.scrollWidth, window: innerWidth});
document.body.append(out);
</script>"#;

#[derive(Debug, Deserialize)]
struct Measured {
    pictures: Vec<Picture>,
    page: f64,
    window: f64,
}

#[derive(Debug, Deserialize)]
struct Picture {
    frame: Place,
    texts: Vec<Place>,
    shapes: usize,
}

#[derive(Debug, Deserialize)]
struct Place {
    // Read by whoever looks at a failure.
    #[expect(dead_code)]
    text: String,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Place {
    fn covers(&self, other: &Self) -> bool {
        // Boxes of lines hold some room above and below the letters.
        let (left, right) = (
            self.x.max(other.x),
            (self.x + self.width).min(other.x + other.width),
        );
        let (top, bottom) = (
            self.y.max(other.y),
            (self.y + self.height).min(other.y + other.height),
        );
        right - left > 0.5 && bottom - top > 3.0
    }

    fn is_within(&self, frame: &Self) -> bool {
        self.x >= frame.x - 0.5
            && self.y >= frame.y - 2.0
            && self.x + self.width <= frame.x + frame.width + 0.5
            && self.y + self.height <= frame.y + frame.height + 2.0
    }
}

#[test]
fn no_text_is_drawn_over_another() {
    for (what, report) in [
        ("recovered", Report::of_one(samples::recovered())),
        ("node crash", Report::of_one(samples::node_crash())),
        (
            "never recovered",
            Report::of_one(samples::never_recovered()),
        ),
        ("mended", Report::of_one(samples::mended())),
        ("nothing sent", Report::of_one(samples::nothing_sent())),
        ("crowded", Report::of_one(samples::crowded())),
        ("hostile", Report::of_one(samples::hostile())),
        ("game day", samples::game_day()),
    ] {
        let measured = measure(&report);
        assert!(!measured.pictures.is_empty(), "{what}: no picture");
        assert!(
            measured.page <= measured.window,
            "{what}: wider than the window: {measured:?}"
        );
        for picture in &measured.pictures {
            assert!(picture.shapes > 0, "{what}: an empty picture");
            for (index, text) in picture.texts.iter().enumerate() {
                assert!(
                    text.is_within(&picture.frame),
                    "{what}: {text:?} leaves {:?}",
                    picture.frame
                );
                for other in &picture.texts[index + 1..] {
                    assert!(!text.covers(other), "{what}: {text:?} is on {other:?}");
                }
            }
        }
    }
}

#[test]
fn the_lanes_are_there_without_any_script() {
    let page = html::page(&Report::of_one(samples::node_crash()));
    let dom = dump(&page);
    for lane in [
        "requests",
        "answers: slowest",
        "web-6f7b9c-m5hfw",
        "node-1",
        "events",
    ] {
        assert!(dom.contains(&format!(">{lane}</text>")), "no lane {lane}");
    }
    assert!(!dom.contains("<script"));
}

fn measure(report: &Report) -> Measured {
    // The policy that keeps scripts out would keep this one out too.
    let page = html::page(report).replace("default-src 'none'; ", "");
    let dom = dump(&page.replace("</body>", &format!("{MEASURE}</body>")));
    let found = dom
        .split_once("<pre id=\"measured\">")
        .expect("a measure")
        .1;
    let found = found.split_once("</pre>").expect("its end").0;
    let found = found
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    serde_json::from_str(&found).expect("JSON")
}

/// What the browser made of a page.
fn dump(page: &str) -> String {
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("page.html");
    std::fs::write(&file, page).expect("a page");
    let output = Command::new(chromium())
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--window-size=1280,900",
            "--dump-dom",
        ])
        .arg(format!(
            "--user-data-dir={}",
            scratch.path().join("profile").display()
        ))
        .arg(format!("file://{}", file.display()))
        .output()
        .expect("the browser starts");
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        dom.contains("</html>"),
        "no page: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    dom
}

/// As `scripts/install test` sees to.
fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = [
        "chromium-headless-shell",
        "chromium",
        "chromium-browser",
        "google-chrome",
    ];
    let found = names.iter().find_map(|name| {
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|file| file.is_file())
    });
    found.expect("a Chromium: scripts/install test")
}
