//! Likely personal data: e-mail addresses, telephone numbers, payment cards and bank accounts. Cards (Luhn, ISO/IEC
//! 7812-1) and accounts (IBAN, ISO 13616) are believed only when their check digits are right.

use regex::Regex;
use std::ops::Range;
use std::sync::LazyLock;

/// What a piece of text looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Personal {
    /// name@host.tld
    Email,
    /// 13 to 19 digits with a right check digit.
    Card,
    /// Country, check digits, account.
    Iban,
    /// With a `+`, or in groups as North American numbers are written.
    Phone,
}

impl Personal {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "e-mail address",
            Self::Card => "payment card",
            Self::Iban => "bank account",
            Self::Phone => "telephone number",
        }
    }

    /// What `--redact` writes in its place.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Email => "[EMAIL]",
            Self::Card => "[CARD]",
            Self::Iban => "[IBAN]",
            Self::Phone => "[PHONE]",
        }
    }
}

static PATTERNS: LazyLock<[(Personal, Option<Regex>); 4]> = LazyLock::new(|| {
    let pattern = |p: &str| Regex::new(p).ok();
    [
        (Personal::Email, pattern(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")),
        (Personal::Iban, pattern(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")),
        (Personal::Card, pattern(r"\b[3-6][0-9](?:[ -]?[0-9]){11,17}\b")),
        (
            Personal::Phone,
            pattern(r"\+[0-9](?:[ ().-]{0,2}[0-9]){7,14}\b|\(?\b[2-9][0-9]{2}\)?[-. ][0-9]{3}[-.][0-9]{4}\b"),
        ),
    ]
});

/// Every piece that looks personal, in the order of the text; none overlaps another.
pub fn find(text: &str) -> Vec<(Personal, Range<usize>)> {
    // Nine in ten texts have neither, and a byte scan is cheaper than four patterns.
    if !text.contains('@') && text.bytes().filter(u8::is_ascii_digit).count() < 9 {
        return Vec::new();
    }
    let mut found: Vec<(Personal, Range<usize>)> = Vec::new();
    for (kind, pattern) in &*PATTERNS {
        for hit in pattern.iter().flat_map(|p| p.find_iter(text)) {
            let right = match kind {
                Personal::Card => luhn(hit.as_str()),
                Personal::Iban => iban(hit.as_str()),
                Personal::Email | Personal::Phone => true,
            };
            let free = |(_, r): &(Personal, Range<usize>)| r.end <= hit.start() || hit.end() <= r.start;
            if right && found.iter().all(free) {
                found.push((*kind, hit.range()));
            }
        }
    }
    found.sort_by_key(|(_, range)| range.start);
    found
}

/// The text with each piece replaced by its mark; none when nothing looks personal.
pub fn redact(text: &str) -> Option<String> {
    let found = find(text);
    if found.is_empty() {
        return None;
    }
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for (kind, range) in found {
        out.push_str(&text[at..range.start]);
        out.push_str(kind.mark());
        at = range.end;
    }
    out.push_str(&text[at..]);
    Some(out)
}

/// The check of payment cards: every second digit from the right doubled, its digits added; the sum is a multiple of 10.
fn luhn(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let doubled = |(i, d): (usize, &u32)| if i % 2 == 1 { d * 2 / 10 + d * 2 % 10 } else { *d };
    let varied = digits.iter().any(|d| *d != digits[0]);
    varied && (13..=19).contains(&digits.len()) && digits.iter().rev().enumerate().map(doubled).sum::<u32>() % 10 == 0
}

/// The check of bank accounts: the first four characters behind the rest, letters as 10 to 35; 1 modulo 97.
fn iban(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| *c != ' ').collect();
    if !(15..=34).contains(&plain.len()) {
        return false;
    }
    let turned = plain[4..].chars().chain(plain[..4].chars());
    let rest = turned.filter_map(|c| c.to_digit(36)).fold(0, |rest, d| match d {
        0..=9 => (rest * 10 + d) % 97,
        _ => (rest * 100 + d) % 97,
    });
    rest == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(&str, &str)> {
        find(text).into_iter().map(|(kind, range)| (kind.name(), &text[range])).collect()
    }

    #[test]
    fn each_kind_is_found_where_it_stands() {
        let text = "Write to ann.b+c@mail.example.org, or call +49 (0)30 1234567 or (212) 555-0187.";
        assert_eq!(
            kinds(text),
            [
                ("e-mail address", "ann.b+c@mail.example.org"),
                ("telephone number", "+49 (0)30 1234567"),
                ("telephone number", "(212) 555-0187")
            ]
        );
        let text = "Card 4111 1111 1111 1111, account DE89 3704 0044 0532 0130 00.";
        assert_eq!(
            kinds(text),
            [("payment card", "4111 1111 1111 1111"), ("bank account", "DE89 3704 0044 0532 0130 00")]
        );
    }

    #[test]
    fn wrong_check_digits_and_plain_numbers_are_nothing() {
        for text in [
            "4111 1111 1111 1112",
            "DE88 3704 0044 0532 0130 00",
            "In 2024 the 1234567890 items cost 99.95, ISBN 978-3-16-148410-0",
            "version 1.2.3.4 at 12:30:45, 2024-11-25",
            "@ home, user@host",
            "0000 0000 0000 0000",
        ] {
            assert_eq!(kinds(text), [], "{text}");
        }
    }

    #[test]
    fn redaction_leaves_the_rest_alone() {
        assert_eq!(redact("mail a@b.cd, now").as_deref(), Some("mail [EMAIL], now"));
        assert_eq!(redact("nothing here"), None);
    }
}
