//! `metrics.jsonl` once more, as TensorBoard reads it.
//!
//! An events file is a chain of TFRecords (length, its masked CRC-32C, the bytes, their masked CRC-32C), each holding an
//! `Event` in protobuf; the first names the version. The fields are those of TensorFlow's `event.proto` and `summary.proto`,
//! as far as scalars need them.

use prost::Message;
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::Path;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// How the files of a RUN are called, before the second they were begun.
const NAME: &str = "events.out.tfevents.";

/// An events file being written.
pub struct Events {
    file: File,
    /// When the run began, and the seconds of the last line that said them.
    begun: u64,
    seconds: f64,
}

impl Events {
    /// Begins the file of a RUN, or begins it anew with the lines of `metrics.jsonl` that are kept.
    pub fn create(run: &Path, metrics: &str) -> anyhow::Result<Self> {
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let begun = begun(run)?.unwrap_or_else(now);
        let file = File::create(run.join(format!("{NAME}{begun}.edgeft")))?;
        let mut events = Self { file, begun, seconds: 0.0 };
        let version = Event { wall_time: begun as f64, file_version: Some("brain.Event:2".into()), ..Event::default() };
        events.file.write_all(&record(&version.encode_to_vec()))?;
        for line in metrics.lines() {
            events.line(&serde_json::from_str(line)?)?;
        }
        Ok(events)
    }

    /// Writes a line of `metrics.jsonl`: what is measured at its step.
    pub fn line(&mut self, line: &Value) -> anyhow::Result<()> {
        self.seconds = line["seconds"].as_f64().unwrap_or(self.seconds);
        let scalar = |(name, value): (&String, &Value)| {
            let tag = match name.as_str() {
                "step" | "seconds" | "tokens" => return None,
                name => name.strip_prefix("val_").map_or(format!("train/{name}"), |n| format!("val/{n}")),
            };
            Some(Scalar { tag, simple_value: value.as_f64()? as f32 })
        };
        let value: Vec<Scalar> = line.as_object().into_iter().flatten().filter_map(scalar).collect();
        let event = Event {
            wall_time: self.begun as f64 + self.seconds,
            step: line["step"].as_i64().unwrap_or(0),
            file_version: None,
            summary: Some(Summary { value }),
        };
        self.file.write_all(&record(&event.encode_to_vec()))?;
        Ok(())
    }
}

/// When the run began, from the name of the file that it has.
fn begun(run: &Path) -> anyhow::Result<Option<u64>> {
    for entry in std::fs::read_dir(run)? {
        let name = entry?.file_name();
        let begun = name.to_str().and_then(|n| n.strip_prefix(NAME)?.strip_suffix(".edgeft")?.parse().ok());
        if begun.is_some() {
            return Ok(begun);
        }
    }
    Ok(None)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
    out
}

/// A checksum that is stored beside what it sums is turned, so that sums of sums stay useful.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred bytes a step are not worth a table.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a file, every checksum checked.
    fn read(run: &Path) -> Vec<Event> {
        let names: Vec<_> = std::fs::read_dir(run).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let bytes = std::fs::read(&names[0]).unwrap();
        let (mut rest, mut events) = (bytes.as_slice(), Vec::new());
        let word = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap());
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(word(&rest[8..12]), masked(crc32c(&rest[..8])));
            let data = &rest[12..12 + n];
            assert_eq!(word(&rest[12 + n..16 + n]), masked(crc32c(data)));
            events.push(Event::decode(data).unwrap());
            rest = &rest[16 + n..];
        }
        events
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn what_is_written_is_read_back_and_a_run_that_goes_on_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let step = |step: i64| serde_json::json!({"step": step, "loss": 0.5, "lr": 1e-3, "seconds": step as f64 / 2.0});
        let mut events = Events::create(dir.path(), "").unwrap();
        events.line(&step(1)).unwrap();
        events.line(&serde_json::json!({"step": 1, "val_loss": 0.25})).unwrap();
        events.line(&step(2)).unwrap();
        let before = read(dir.path());
        assert_eq!(before[0].file_version.as_deref(), Some("brain.Event:2"));
        let tags = |e: &Event| {
            let values = e.summary.clone().unwrap().value;
            values.into_iter().map(|v| (v.tag, v.simple_value)).collect::<Vec<_>>()
        };
        assert_eq!(tags(&before[1]), [("train/loss".into(), 0.5), ("train/lr".into(), 1e-3)]);
        assert_eq!(tags(&before[2]), [("val/loss".into(), 0.25)]);
        assert_eq!(before.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 1, 1, 2]);
        assert_eq!(before[3].wall_time - before[0].wall_time, 1.0);
        let kept = format!("{}\n{}\n", step(1), serde_json::json!({"step": 1, "val_loss": 0.25}));
        let mut again = Events::create(dir.path(), &kept).unwrap();
        again.line(&step(2)).unwrap();
        assert_eq!(read(dir.path()), before);
    }
}
