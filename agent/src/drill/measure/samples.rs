//! The file that a measuring process writes: a record of fixed size for each request, appended when its outcome is known.
//!
//! Whoever reads it, reads whole records from where it stopped; a record that was cut short by the end of the process
//! is none. Records stand in the order in which outcomes came, which is not that of sending.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use crate::drill::fault::Order;
use crate::drill::site::Site;

const SIZE: usize = 24;

/// A request, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::drill) struct Sample {
    /// When it was sent, by the wall clock of that moment: microseconds since 1970.
    pub(in crate::drill) sent_at: u64,
    /// The same by the clock that is never set: microseconds since the host's start.
    pub(in crate::drill) sent: u64,
    /// Microseconds until the outcome was known.
    pub(in crate::drill) took: u32,
    /// How long after its time it was sent, in milliseconds.
    pub(in crate::drill) late: u16,
    pub(in crate::drill) outcome: Outcome,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::drill) enum Outcome {
    Good,
    TimedOut,
    Refused,
    Reset,
    Unreachable,
    /// The connection ended before the answer was complete.
    Closed,
    NoSuchName,
    NotHttp,
    /// The prober itself could not send it.
    NotSent,
    Failed,
    /// An HTTP status that is none of a good answer, 100 to 999.
    Status(u16),
}

impl Outcome {
    const NAMED: [Self; 10] = [
        Self::Good,
        Self::TimedOut,
        Self::Refused,
        Self::Reset,
        Self::Unreachable,
        Self::Closed,
        Self::NoSuchName,
        Self::NotHttp,
        Self::NotSent,
        Self::Failed,
    ];

    fn code(self) -> u16 {
        match self {
            Self::Status(status) => status,
            named => (0..)
                .zip(Self::NAMED)
                .find_map(|(code, other)| (other == named).then_some(code))
                .unwrap_or(u16::MAX),
        }
    }

    fn of_code(code: u16) -> Self {
        match Self::NAMED.get(usize::from(code)) {
            Some(named) => *named,
            None if (100..1000).contains(&code) => Self::Status(code),
            None => Self::Failed,
        }
    }

    /// In words, for those who read a report. `timeout` is how long an answer may have taken.
    pub(in crate::drill) fn describe(self, timeout: Duration) -> String {
        let text = match self {
            Self::Good => "good",
            Self::TimedOut => {
                return format!("no answer within {}", skiff_dev::GoDuration(timeout));
            }
            Self::Refused => "connection refused",
            Self::Reset => "connection reset",
            Self::Unreachable => "no route to host",
            Self::Closed => "connection closed before the answer was complete",
            Self::NoSuchName => "name not resolved",
            Self::NotHttp => "not an HTTP answer",
            Self::NotSent => "not sent: the prober had no socket left",
            Self::Failed => "failed otherwise",
            Self::Status(status) => return format!("HTTP {status}"),
        };
        text.to_owned()
    }
}

impl From<&io::Error> for Outcome {
    fn from(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let exhausted = [
            libc::EMFILE,
            libc::ENFILE,
            libc::EADDRNOTAVAIL,
            libc::ENOBUFS,
            libc::ENOMEM,
        ];
        if error.raw_os_error().is_some_and(|e| exhausted.contains(&e)) {
            return Self::NotSent;
        }
        match error.kind() {
            Kind::ConnectionRefused => Self::Refused,
            Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => Self::Reset,
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::PermissionDenied => {
                Self::Unreachable
            }
            Kind::TimedOut => Self::TimedOut,
            Kind::UnexpectedEof => Self::Closed,
            _ => Self::Failed,
        }
    }
}

impl Sample {
    pub(in crate::drill) fn is_good(&self) -> bool {
        self.outcome == Outcome::Good
    }

    /// When the outcome was known, by the clock that is never set.
    pub(in crate::drill) fn ended(&self) -> u64 {
        self.sent + u64::from(self.took)
    }

    fn encode(&self) -> [u8; SIZE] {
        let mut record = [0; SIZE];
        record[..8].copy_from_slice(&self.sent_at.to_le_bytes());
        record[8..16].copy_from_slice(&self.sent.to_le_bytes());
        record[16..20].copy_from_slice(&self.took.to_le_bytes());
        record[20..22].copy_from_slice(&self.late.to_le_bytes());
        record[22..].copy_from_slice(&self.outcome.code().to_le_bytes());
        record
    }

    fn decode(record: &[u8]) -> Option<Self> {
        Some(Self {
            sent_at: u64::from_le_bytes(*record.first_chunk()?),
            sent: u64::from_le_bytes(*record.get(8..)?.first_chunk()?),
            took: u32::from_le_bytes(*record.get(16..)?.first_chunk()?),
            late: u16::from_le_bytes(*record.get(20..)?.first_chunk()?),
            outcome: Outcome::of_code(u16::from_le_bytes(*record.get(22..)?.first_chunk()?)),
        })
    }
}

/// Where the samples of a task are.
pub(in crate::drill) fn samples_of(site: &Site, order: &Order) -> PathBuf {
    site.file(&order.uid, "samples")
}

/// Microseconds since 1970 as the API writes them.
pub(in crate::drill) fn stamp(microseconds: u64) -> MicroTime {
    let since = i64::try_from(microseconds).unwrap_or(i64::MAX);
    MicroTime(Timestamp::from_microsecond(since).unwrap_or(Timestamp::MAX))
}

/// The file, for the one process that writes it.
#[derive(Debug)]
pub(in crate::drill) struct SampleLog {
    file: File,
    count: u64,
    /// What there was no room for yet.
    waiting: Vec<u8>,
}

impl SampleLog {
    /// Opens it behind what an earlier process wrote.
    pub(in crate::drill) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let count = file.metadata()?.len() / SIZE as u64;
        file.set_len(count * SIZE as u64)?;
        Ok(Self {
            file,
            count,
            waiting: Vec::new(),
        })
    }

    /// How many records there are.
    pub(in crate::drill) fn count(&self) -> u64 {
        self.count
    }

    /// On a full disk, which may be the very thing that is measured, it waits for room: until a later one finds some.
    pub(in crate::drill) fn append(&mut self, sample: &Sample) -> io::Result<()> {
        self.waiting.extend(sample.encode());
        self.count += 1;
        match write_through(&mut self.file, &mut self.waiting) {
            Err(error) if is_full(&error) => Ok(()),
            written => written,
        }
    }

    /// Has room for everything that was appended.
    ///
    /// # Errors
    /// When there is still none.
    pub(in crate::drill) fn finish(&mut self) -> io::Result<()> {
        write_through(&mut self.file, &mut self.waiting)
    }

    /// As [`SampleLog::append`], and returns when it would survive the host's end.
    pub(in crate::drill) fn append_durably(&mut self, sample: &Sample) -> io::Result<()> {
        self.append(sample)?;
        self.finish()?;
        self.file.sync_data()
    }
}

/// Writes what it can; what is left in `bytes` was not written.
fn write_through(to: &mut impl Write, bytes: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => drop(bytes.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::StorageFull | Kind::QuotaExceeded)
}

/// Reads on where it stopped.
#[derive(Debug, Default)]
pub(in crate::drill) struct SampleReader {
    offset: u64,
}

impl SampleReader {
    /// What was appended since the last time; nothing while there is no file.
    pub(in crate::drill) fn read(&mut self, path: &Path) -> io::Result<Vec<Sample>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.len() / SIZE * SIZE;
        self.offset += whole as u64;
        let records = bytes[..whole].chunks_exact(SIZE);
        Ok(records.filter_map(Sample::decode).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_come_back_and_half_a_record_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("samples");
        let mut reader = SampleReader::default();
        assert_eq!(reader.read(&path).unwrap(), []);
        let outcomes = Outcome::NAMED.into_iter().chain([Outcome::Status(503)]);
        let samples: Vec<_> = (1..)
            .zip(outcomes)
            .map(|(number, outcome)| Sample {
                sent_at: 1_700_000_000_000_000 + number,
                sent: number,
                took: u32::MAX - 1,
                late: 7,
                outcome,
            })
            .collect();
        let mut log = SampleLog::open(&path).unwrap();
        log.append(&samples[0]).unwrap();
        assert_eq!(reader.read(&path).unwrap(), samples[..1]);
        for sample in &samples[1..] {
            log.append_durably(sample).unwrap();
        }
        // The process ends in the middle of a record.
        log.file.write_all(b"half a record").unwrap();
        assert_eq!(reader.read(&path).unwrap(), samples[1..]);
        let mut log = SampleLog::open(&path).unwrap();
        assert_eq!(log.count(), samples.len() as u64);
        log.append(&samples[0]).unwrap();
        assert_eq!(reader.read(&path).unwrap(), samples[..1]);
    }

    /// A disk with so much room.
    struct Disk {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fits = bytes.len().min(self.room);
            if fits == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= fits;
            self.written.extend(&bytes[..fits]);
            Ok(fits)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_written_once_it_does() {
        let mut disk = Disk {
            room: 30,
            written: Vec::new(),
        };
        let bytes: Vec<u8> = (0..48).collect();
        let mut waiting = bytes.clone();
        let refused = write_through(&mut disk, &mut waiting).unwrap_err();
        assert!(is_full(&refused), "{refused}");
        assert_eq!((disk.written.len(), waiting.len()), (30, 18));
        disk.room = 100;
        write_through(&mut disk, &mut waiting).unwrap();
        assert_eq!((disk.written, waiting), (bytes, Vec::new()));
    }

    #[test]
    fn stamps_are_to_the_microsecond() {
        let stamp = serde_json::to_value(stamp(1_700_000_000_000_001)).unwrap();
        assert_eq!(stamp, "2023-11-14T22:13:20.000001Z");
    }

    #[test]
    fn errors_of_the_system_are_told_apart() {
        let of = |errno| Outcome::from(&io::Error::from_raw_os_error(errno));
        assert_eq!(of(libc::ECONNREFUSED), Outcome::Refused);
        assert_eq!(of(libc::ECONNRESET), Outcome::Reset);
        assert_eq!(of(libc::EHOSTUNREACH), Outcome::Unreachable);
        assert_eq!(of(libc::EMFILE), Outcome::NotSent);
        assert_eq!(of(libc::EIO), Outcome::Failed);
    }
}
