//! Logs on disk, written while they are read.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::runtime::types::ContainerRecord;

struct Log {
    directory: tempfile::TempDir,
}

impl Log {
    fn new() -> Self {
        let log = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(log.source().state_dir).unwrap();
        fs::create_dir(log.directory.path().join("web")).unwrap();
        log.begin_file();
        log.record(r#"{"state": "running", "pid": 1, "startedAt": "2026-11-22T10:00:00Z"}"#);
        log
    }

    fn source(&self) -> LogSource {
        LogSource {
            log_path: self.directory.path().join("web/0.log"),
            state_dir: self.directory.path().join("state"),
        }
    }

    fn begin_file(&self) {
        fs::File::create_new(self.source().log_path).unwrap();
    }

    fn rotate(&self, suffix: &str) {
        let path = self.source().log_path;
        fs::rename(&path, format!("{}.{suffix}", path.display())).unwrap();
        self.begin_file();
    }

    fn write(&self, bytes: &[u8]) {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(self.source().log_path)
            .unwrap();
        file.write_all(bytes).unwrap();
    }

    fn line(&self, second: i64, message: &str) {
        self.write(entry(second, "stdout F", message).as_bytes());
    }

    fn record(&self, state: &str) {
        let record: ContainerRecord = serde_json::from_str(&format!(
            r#"{{"id": "c", "name": "web", "attempt": 0, "image": "i", "imageId": "d",
                 "logPath": "/x", "createdAt": "2026-11-22T10:00:00Z", "state": {state}}}"#
        ))
        .unwrap();
        let directory = self.source().state_dir;
        let draft = directory.join(".record.json");
        fs::write(&draft, serde_json::to_vec(&record).unwrap()).unwrap();
        fs::rename(draft, directory.join("record.json")).unwrap();
    }

    fn end(&self) {
        self.record(
            r#"{"state": "exited", "finishedAt": "2026-11-22T10:00:00Z", "exitCode": 0,
                "oomKilled": false}"#,
        );
    }

    async fn open(&self, options: LogOptions) -> LogStream {
        LogStream::open(self.source(), options, &Watcher::new().unwrap())
            .await
            .unwrap()
    }

    async fn read(&self, options: LogOptions) -> String {
        let mut log = self.open(options).await;
        String::from_utf8(rest(&mut log).await).unwrap()
    }
}

fn entry(second: i64, tags: &str, message: &str) -> String {
    let time = Timestamp::from_second(second).unwrap();
    format!("{time:.9} {tags} {message}\n")
}

async fn rest(log: &mut LogStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = within(log.next()).await.unwrap() {
        all.extend(bytes);
    }
    all
}

async fn until(log: &mut LogStream, text: &str) {
    let mut all = String::new();
    while !all.ends_with(text) {
        let bytes = within(log.next()).await.unwrap().expect("more of the log");
        all.push_str(str::from_utf8(&bytes).unwrap());
    }
    assert_eq!(all, text);
}

async fn within<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .expect("the log did not go on")
}

fn follow() -> LogOptions {
    LogOptions {
        follow: true,
        ..LogOptions::default()
    }
}

#[tokio::test]
async fn gives_what_the_options_ask_for() {
    let log = Log::new();
    for second in 0..10 {
        log.line(second, &format!("line {second}"));
    }
    log.write(entry(10, "stderr F", "oh").as_bytes());
    let options = LogOptions::default;
    let tail = LogOptions {
        tail: Some(2),
        ..options()
    };
    assert_eq!(log.read(tail).await, "line 9\noh\n");
    let since = LogOptions {
        since: Some(Timestamp::from_second(8).unwrap()),
        timestamps: true,
        ..options()
    };
    assert_eq!(
        log.read(since).await,
        "1970-01-01T00:00:08.000000000Z line 8\n1970-01-01T00:00:09.000000000Z line 9\n\
         1970-01-01T00:00:10.000000000Z oh\n"
    );
    let limited = LogOptions {
        limit_bytes: Some(10),
        ..options()
    };
    assert_eq!(log.read(limited).await, "line 0\nlin");
    let only = LogOptions {
        stream: Some(OutputStream::Stderr),
        ..options()
    };
    assert_eq!(log.read(only).await, "oh\n");
}

#[tokio::test]
async fn joins_partial_lines_and_passes_binary_on() {
    let log = Log::new();
    log.write(entry(1, "stdout P", "one ").as_bytes());
    log.write(entry(2, "stdout F", "line").as_bytes());
    log.write(b"1970-01-01T00:00:03.000000000Z stdout F \0\xff\xfe\r\n");
    log.write(b"1970-01-01T00:00:04.000000000Z stdout F torn");
    let options = LogOptions {
        timestamps: true,
        ..LogOptions::default()
    };
    let bytes = rest(&mut log.open(options).await).await;
    let expected = b"1970-01-01T00:00:01.000000000Z one line\n\
                     1970-01-01T00:00:03.000000000Z \0\xff\xfe\r\n";
    assert_eq!(bytes, expected);
}

#[tokio::test]
async fn a_missing_file_is_an_error() {
    let log = Log::new();
    fs::remove_file(log.source().log_path).unwrap();
    let opened = LogStream::open(log.source(), follow(), &Watcher::new().unwrap()).await;
    assert_eq!(opened.err().unwrap().kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn follows_until_the_container_has_ended_and_all_is_read() {
    let log = Log::new();
    log.line(0, "old");
    let options = LogOptions {
        tail: Some(0),
        ..follow()
    };
    let mut stream = log.open(options).await;
    log.line(1, "new");
    until(&mut stream, "new\n").await;
    log.line(2, "last words");
    log.end();
    assert_eq!(rest(&mut stream).await, b"last words\n");

    assert_eq!(log.read(follow()).await, "old\nnew\nlast words\n");
    fs::remove_dir_all(log.source().state_dir).unwrap();
    assert_eq!(log.read(follow()).await, "old\nnew\nlast words\n");
}

#[tokio::test]
async fn an_entry_written_in_two_halves_is_given_once() {
    let log = Log::new();
    let mut stream = log.open(follow()).await;
    let entry = entry(1, "stdout F", "whole");
    let (first, second) = entry.split_at(40);
    log.line(0, "before");
    log.write(first.as_bytes());
    until(&mut stream, "before\n").await;
    log.write(second.as_bytes());
    log.end();
    assert_eq!(rest(&mut stream).await, b"whole\n");
}

#[tokio::test]
async fn loses_nothing_when_rotated_more_often_than_it_looks() {
    let log = Log::new();
    log.line(0, "a");
    let mut stream = log.open(follow()).await;
    until(&mut stream, "a\n").await;
    log.line(1, "b");
    log.rotate("20261122-100001");
    log.line(2, "c");
    log.rotate("20261122-100002");
    log.rotate("20261122-100003");
    log.line(3, "d");
    log.end();
    assert_eq!(rest(&mut stream).await, b"b\nc\nd\n");
}

/// A reader that is slow or fast, a writer that rotates: every line comes once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_arrives_under_constant_rotation() {
    const LINES: i64 = 20_000;
    let log = std::sync::Arc::new(Log::new());
    let mut stream = log.open(follow()).await;
    let writer = log.clone();
    let writing = tokio::task::spawn_blocking(move || {
        for number in 0..LINES {
            writer.line(number, &number.to_string());
            if number % 500 == 499 {
                writer.rotate(&format!("{number:09}"));
            }
        }
        writer.end();
    });
    let got = String::from_utf8(rest(&mut stream).await).unwrap();
    writing.await.unwrap();
    let expected: String = (0..LINES).map(|number| format!("{number}\n")).collect();
    assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
}

#[tokio::test]
async fn a_truncated_file_is_read_from_its_beginning() {
    let log = Log::new();
    let mut stream = log.open(follow()).await;
    log.line(0, "a long line before the file is cut");
    until(&mut stream, "a long line before the file is cut\n").await;
    fs::File::create(log.source().log_path).unwrap();
    log.line(1, "b");
    log.end();
    assert_eq!(rest(&mut stream).await, b"b\n");
}

#[tokio::test]
async fn one_watcher_serves_many_followers() {
    let log = Log::new();
    let watcher = Watcher::new().unwrap();
    let mut streams = Vec::new();
    for _ in 0..300 {
        let stream = LogStream::open(log.source(), follow(), &watcher).await;
        streams.push(stream.unwrap());
    }
    log.line(0, "to all");
    for stream in &mut streams {
        until(stream, "to all\n").await;
    }
    drop(streams.split_off(1));
    log.line(1, "to one");
    until(&mut streams[0], "to one\n").await;
    assert!(Path::new(&log.source().log_path).exists());
}
