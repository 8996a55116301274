//! Numbers with a unit, as a person writes them.

use serde::{Deserialize, Serialize};

/// Bytes, as a person writes them: `2GiB`, `800M`, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mem(pub u64);

/// Seconds, as a person writes them: `90s`, `20m`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Time(pub f64);

impl std::str::FromStr for Mem {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        crate::tune::memory::parse_bytes(text).map(Self)
    }
}

impl std::str::FromStr for Time {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        crate::tune::budget::parse_duration(text).map(Self)
    }
}

impl TryFrom<String> for Mem {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl TryFrom<String> for Time {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mem> for String {
    fn from(mem: Mem) -> Self {
        mem.0.to_string()
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        format!("{}s", time.0)
    }
}
