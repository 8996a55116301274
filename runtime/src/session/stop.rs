//! Stop strings, which may begin in one token and end in another: text is held back while it could still become one.

use crate::error::{Error, Kind, Result};

/// Text on its way out, watched for stop strings.
pub(super) struct StopStrings {
    stops: Vec<String>,
    held: String,
    hit: bool,
}

impl StopStrings {
    pub fn new(stops: &[String]) -> Result<Self> {
        if let Some(i) = stops.iter().position(String::is_empty) {
            return Err(Error::new(Kind::Input, "stop", format!("stop string {i} is empty")));
        }
        Ok(Self { stops: stops.to_vec(), held: String::new(), hit: false })
    }

    /// Whether a stop string came; nothing more is given then.
    pub fn hit(&self) -> bool {
        self.hit
    }

    /// Takes more text; gives what can no longer become part of a stop string.
    pub fn push(&mut self, text: &str) -> String {
        if self.hit {
            return String::new();
        }
        self.held.push_str(text);
        // The earliest stop string wins, wherever it stands in the list.
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.hit = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| self.unfinished(stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text ended without a stop string: gives what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that begin `stop`.
    fn unfinished(&self, stop: &str) -> usize {
        let most = self.held.len().min(stop.len() - 1);
        (1..=most).rev().find(|&n| stop.is_char_boundary(n) && self.held.ends_with(&stop[..n])).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], want: &str, hit: bool) {
        let mut stop = StopStrings::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap();
        let mut text = String::new();
        for piece in pieces {
            text.push_str(&stop.push(piece));
            assert!(!stops.iter().any(|s| text.contains(s)), "{text:?} leaks a stop string");
        }
        text.push_str(&stop.finish());
        assert_eq!((text.as_str(), stop.hit()), (want, hit));
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_not_given() {
        check(&["\n\nUser:"], &["Hi", ".\n", "\nUs", "er: x"], "Hi.", true);
        check(&["END"], &["aEN", "Eb", "E", "N", "D", "c"], "aENEb", true);
        check(&["é😀"], &["xé", "😀y"], "x", true);
    }

    #[test]
    fn the_earliest_of_several_wins() {
        check(&["c", "ab"], &["xabc"], "x", true);
        check(&["aab"], &["aa", "ab"], "a", true);
    }

    #[test]
    fn what_only_looked_like_one_is_given_in_the_end() {
        check(&["END"], &["the EN"], "the EN", false);
        check(&[], &["a", "b"], "ab", false);
        assert!(StopStrings::new(&[String::new()]).is_err());
    }
}
