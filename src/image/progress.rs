//! How a pull goes on, shown to a person: a bar for each layer on a terminal, else a line for each
//! thing that happens.

use std::io::{Write, stderr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skiff_images::{LayerStage, PullEvent};

use super::show::human_size;
use crate::terminal;

/// Between two pictures.
const FRAME: Duration = Duration::from_millis(100);
/// Characters of a bar.
const BAR: usize = 30;

/// Layers and how far each is, in the image's order.
#[derive(Debug, Default)]
struct Board {
    waiting: bool,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    digest: skiff_images::Digest,
    size: u64,
    stage: Option<LayerStage>,
}

impl Board {
    fn take(&mut self, event: &PullEvent) {
        match event {
            PullEvent::Waiting => self.waiting = true,
            PullEvent::Resolved { layers, .. } => {
                let layer = |(digest, size): &(_, _)| Layer {
                    digest: *digest,
                    size: *size,
                    stage: None,
                };
                self.layers = layers.iter().map(layer).collect();
            }
            PullEvent::Layer { digest, stage } => {
                self.waiting = false;
                let mut layers = self.layers.iter_mut();
                if let Some(layer) = layers.find(|layer| layer.digest == *digest) {
                    layer.stage = Some(stage.clone());
                }
            }
        }
    }

    /// At most `rows` lines of at most `columns` characters. Layers under way come first when
    /// there is no room for all.
    fn lines(&self, rows: usize, columns: usize) -> Vec<String> {
        let mut shown: Vec<&Layer> = self.layers.iter().collect();
        let more = (shown.len() + 1).saturating_sub(rows);
        if more > 0 {
            shown.sort_by_key(|layer| layer.rank());
            shown.truncate(rows.saturating_sub(1));
        }
        let mut lines: Vec<String> = shown.iter().map(|layer| layer.line()).collect();
        if more > 0 {
            lines.push(format!("and {} more", self.layers.len() - shown.len()));
        }
        if self.waiting {
            lines.push("waiting for another pull of this image".to_owned());
        }
        for line in &mut lines {
            *line = line.chars().take(columns).collect();
        }
        lines
    }
}

impl Layer {
    fn rank(&self) -> u8 {
        match self.stage {
            Some(LayerStage::Downloading { .. } | LayerStage::Resuming { .. }) => 0,
            Some(LayerStage::Unpacking) => 1,
            None => 2,
            Some(LayerStage::Done | LayerStage::Present) => 3,
        }
    }

    fn line(&self) -> String {
        let (bytes, text) = match &self.stage {
            None => (0, "waiting".to_owned()),
            Some(LayerStage::Present) => (self.size, "already here".to_owned()),
            Some(LayerStage::Done) => (self.size, human_size(self.size)),
            Some(LayerStage::Unpacking) => (self.size, "unpacking".to_owned()),
            Some(LayerStage::Downloading { bytes }) => (
                *bytes,
                format!("{} / {}", human_size(*bytes), human_size(self.size)),
            ),
            Some(LayerStage::Resuming { bytes, reason, .. }) => {
                (*bytes, format!("resuming: {reason}"))
            }
        };
        format!("{} {} {text}", short(self.digest), bar(bytes, self.size))
    }
}

fn short(digest: skiff_images::Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// `████▌░░░`.
fn bar(done: u64, of: u64) -> String {
    // Halves of a character.
    let halves = match of {
        0 => 2 * BAR,
        of => (u128::from(done.min(of)) * 2 * BAR as u128 / u128::from(of)) as usize,
    };
    let half = if halves % 2 == 1 { "▌" } else { "" };
    let empty = BAR - halves.div_ceil(2);
    format!("{}{half}{}", "█".repeat(halves / 2), "░".repeat(empty))
}

/// Bars on the terminal that is stderr, drawn over the last ones.
#[derive(Debug, Default)]
pub struct Bars {
    board: Mutex<Board>,
    /// Lines on the terminal.
    drawn: Mutex<usize>,
}

impl Bars {
    pub fn take(&self, event: &PullEvent) {
        lock(&self.board).take(event);
    }

    /// Draws again and again, until it is dropped.
    pub async fn draw(&self) {
        loop {
            tokio::time::sleep(FRAME).await;
            self.frame();
        }
    }

    /// Draws the last picture.
    pub fn finish(&self) {
        self.frame();
    }

    fn frame(&self) {
        let (rows, columns) = terminal::size_of(&stderr()).unwrap_or((24, 80));
        // A line that is full, or the last one, would make the terminal scroll.
        let lines = {
            let board = lock(&self.board);
            board.lines(usize::from(rows) - 1, usize::from(columns) - 1)
        };
        let mut drawn = lock(&self.drawn);
        let mut picture = String::new();
        if *drawn > 0 {
            // Up to the first line, and all below is cleared.
            picture = format!("\x1b[{}A\x1b[J", *drawn);
        }
        for line in &lines {
            picture.push_str(line);
            picture.push('\n');
        }
        // A terminal that is gone needs no picture.
        let _ = stderr().lock().write_all(picture.as_bytes());
        *drawn = lines.len();
    }
}

/// A line for what happens, for logs and pipes.
#[derive(Debug, Default)]
pub struct Lines {
    board: Mutex<Board>,
}

impl Lines {
    pub fn take(&self, event: &PullEvent) {
        let mut board = lock(&self.board);
        let line = board.news(event);
        board.take(event);
        if let Some(line) = line {
            let _ = writeln!(stderr(), "{line}");
        }
    }
}

impl Board {
    fn news(&self, event: &PullEvent) -> Option<String> {
        let (digest, stage) = match event {
            PullEvent::Waiting => return Some("waiting for another pull of this image".to_owned()),
            PullEvent::Resolved { digest, layers } => {
                let plural = if layers.len() == 1 { "" } else { "s" };
                return Some(format!("{digest}: {} layer{plural}", layers.len()));
            }
            PullEvent::Layer { digest, stage } => (*digest, stage),
        };
        let layer = self.layers.iter().find(|layer| layer.digest == digest)?;
        let size = human_size(layer.size);
        let text = match (stage, &layer.stage) {
            (LayerStage::Downloading { .. }, None) => format!("downloading {size}"),
            (LayerStage::Downloading { .. } | LayerStage::Unpacking, _) => return None,
            (LayerStage::Present, _) => "already here".to_owned(),
            (LayerStage::Done, _) => format!("done {size}"),
            (LayerStage::Resuming { bytes, reason, .. }, _) => {
                format!("broke off at {}, resuming: {reason}", human_size(*bytes))
            }
        };
        Some(format!("{}: {text}", short(digest)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it holds is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> skiff_images::Digest {
        skiff_images::Digest::of(text.as_bytes())
    }

    fn board(layers: &[(&str, u64)]) -> Board {
        let mut board = Board::default();
        board.take(&PullEvent::Resolved {
            digest: digest("image"),
            layers: layers
                .iter()
                .map(|(name, size)| (digest(name), *size))
                .collect(),
        });
        board
    }

    fn stage(name: &str, stage: LayerStage) -> PullEvent {
        PullEvent::Layer {
            digest: digest(name),
            stage,
        }
    }

    #[test]
    fn a_bar_shows_how_far_it_is() {
        assert_eq!(bar(0, 10), "░".repeat(30));
        assert_eq!(bar(10, 10), "█".repeat(30));
        assert_eq!(bar(5, 10), format!("{}{}", "█".repeat(15), "░".repeat(15)));
        assert_eq!(bar(1, 60), format!("▌{}", "░".repeat(29)));
        assert_eq!(bar(0, 0), "█".repeat(30));
    }

    #[test]
    fn each_layer_has_a_line() {
        let mut board = board(&[("a", 2_000_000), ("b", 500)]);
        board.take(&stage("a", LayerStage::Downloading { bytes: 1_000_000 }));
        board.take(&stage("b", LayerStage::Present));
        let lines = board.lines(10, 200);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with(&short(digest("a"))), "{lines:?}");
        assert!(lines[0].ends_with("1.00MB / 2.00MB"), "{lines:?}");
        assert!(lines[1].ends_with("already here"), "{lines:?}");
        assert!(
            board
                .lines(10, 20)
                .iter()
                .all(|line| line.chars().count() <= 20)
        );
    }

    #[test]
    fn layers_under_way_are_shown_when_there_is_no_room_for_all() {
        let mut board = board(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
        board.take(&stage("a", LayerStage::Done));
        board.take(&stage("d", LayerStage::Downloading { bytes: 0 }));
        let lines = board.lines(3, 80);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with(&short(digest("d"))), "{lines:?}");
        assert_eq!(lines[2], "and 2 more");
    }

    #[test]
    fn lines_tell_of_each_thing_once() {
        let mut board = board(&[("a", 1000)]);
        let mut told = Vec::new();
        for event in [
            stage("a", LayerStage::Downloading { bytes: 10 }),
            stage("a", LayerStage::Downloading { bytes: 20 }),
            stage("a", LayerStage::Unpacking),
            stage("a", LayerStage::Done),
        ] {
            told.extend(board.news(&event));
            board.take(&event);
        }
        let name = short(digest("a"));
        assert_eq!(
            told,
            [
                format!("{name}: downloading 1.00kB"),
                format!("{name}: done 1.00kB")
            ]
        );
    }
}
