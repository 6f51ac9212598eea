//! What containers write arrives in the log files, whole.

use serde_json::json;

use crate::fixture::{Node, output};

#[tokio::test]
async fn partial_lines_and_binary_output_survive() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let script = "printf 'a\\000b\\377c\\n'; head -c 40000 /dev/zero | tr '\\0' x; printf '\\nend'";
    let config = node.shell(&pod, script, json!({}));
    let log = config.log_path.clone();
    let (ended, _) = node.run(&pod, config).await;
    assert_eq!(ended.exit_code, 0);
    let bytes = std::fs::read(&log).unwrap();
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let contents: Vec<(&[u8], usize)> = lines[..lines.len() - 1]
        .iter()
        .map(|line| (&line[31..39], line.len() - 40))
        .collect();
    assert_eq!(&lines[0][40..], b"a\0b\xffc");
    assert_eq!(
        contents,
        [
            (&b"stdout F"[..], 5),
            (&b"stdout P"[..], 16384),
            (&b"stdout P"[..], 16384),
            (&b"stdout F"[..], 40000 - 2 * 16384),
            (&b"stdout P"[..], 3),
        ]
    );
    node.finish().await;
}

#[tokio::test]
async fn nothing_that_was_written_before_the_end_is_lost() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let config = node.container(&pod, &["seq", "1", "50000"], json!({}));
    let (_, text) = node.run(&pod, config).await;
    let expected: String = (1..=50000).map(|number| format!("{number}\n")).collect();
    assert_eq!(text, expected);
    node.finish().await;
}

#[tokio::test]
async fn a_long_log_is_rotated_without_losses() {
    let node = Node::new().await;
    let pod = node.pod("web").await;
    let config = node.container(&pod, &["seq", "1", "400000"], json!({}));
    let log = config.log_path.clone();
    node.run(&pod, config).await;
    let directory = log.parent().unwrap();
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    // The current one sorts first, being the prefix of the others.
    files.rotate_left(1);
    assert!(files.len() > 1, "{files:?}");
    let text: String = files.iter().map(|file| output(file)).collect();
    assert_eq!(text.lines().count(), 400_000);
    assert!(text.ends_with("399999\n400000\n"));
    node.finish().await;
}
