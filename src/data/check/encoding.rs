//! Text that was read in the wrong encoding once: UTF-8 taken for Windows-1252 (`cafÃ©`), replacement characters, control
//! characters.

/// What is wrong with a text's characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// UTF-8 read as Windows-1252: `Ã©` for `é`.
    Mojibake,
    /// U+FFFD: the character itself is lost.
    Replaced,
    /// Control characters other than tab and line breaks.
    Control,
}

impl Damage {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mojibake => "UTF-8 that was read as Windows-1252",
            Self::Replaced => "characters that were lost (U+FFFD)",
            Self::Control => "control characters",
        }
    }
}

/// What is damaged, each kind once.
pub fn damage(text: &str) -> Vec<Damage> {
    let mut found = Vec::new();
    if !text.is_ascii() {
        if runs(text).any(|(run, _)| decoded(run).is_some()) {
            found.push(Damage::Mojibake);
        }
        if text.contains('\u{fffd}') {
            found.push(Damage::Replaced);
        }
    }
    if text.chars().any(is_control) {
        found.push(Damage::Control);
    }
    found
}

/// The text with mojibake read rightly and control characters left out; none when that changes nothing. Lost characters
/// stay lost.
pub fn repair(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for (run, start) in runs(text) {
        out.push_str(&text[at..start]);
        match decoded(run) {
            Some(right) => out.push_str(&right),
            None => out.push_str(run),
        }
        at = start + run.len();
    }
    out.push_str(&text[at..]);
    out.retain(|c| !is_control(c));
    (out != text).then_some(out)
}

fn is_control(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{80}'..='\u{9f}')
}

/// The runs of characters that stand for bytes above 0x7f in Windows-1252, and where they begin.
fn runs(text: &str) -> impl Iterator<Item = (&str, usize)> {
    let mut rest = text.char_indices().peekable();
    std::iter::from_fn(move || {
        let (start, first) = rest.by_ref().find(|(_, c)| windows_1252(*c).is_some())?;
        let mut end = start + first.len_utf8();
        while let Some((at, c)) = rest.next_if(|(_, c)| windows_1252(*c).is_some()) {
            end = at + c.len_utf8();
        }
        Some((&text[start..end], start))
    })
}

/// What a run says when its characters are taken for the bytes of UTF-8; none when they are not such bytes.
fn decoded(run: &str) -> Option<String> {
    let bytes: Vec<u8> = run.chars().map(windows_1252).collect::<Option<_>>()?;
    String::from_utf8(bytes).ok()
}

/// The byte above 0x7f that a character has in Windows-1252; the five bytes that the page leaves open stand for
/// themselves, as browsers read them (WHATWG Encoding Standard, index windows-1252).
fn windows_1252(c: char) -> Option<u8> {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match c {
        '\u{a0}'..='\u{ff}' => Some(c as u8),
        _ => HIGH.iter().position(|h| *h == c).map(|i| 0x80 + i as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a text becomes when its UTF-8 is read as Windows-1252.
    fn misread(text: &str) -> String {
        let page = |b: u8| (0u32..0x2200).filter_map(char::from_u32).find(|c| windows_1252(*c) == Some(b));
        text.bytes().map(|b| if b < 0x80 { char::from(b) } else { page(b).unwrap() }).collect()
    }

    #[test]
    fn misread_text_is_found_and_read_rightly() {
        for text in ["café crème", "it’s “quoted” — naïve", "Żółw 你好 🙂"] {
            let wrong = misread(text);
            assert_eq!(damage(&wrong), [Damage::Mojibake], "{wrong}");
            assert_eq!(repair(&wrong).as_deref(), Some(text));
        }
    }

    #[test]
    fn right_text_is_left_alone() {
        for text in ["café", "Ünïcödé ÀÉÎ", "it’s “quoted” — naïve…", "5 € ‰ ™", "Ã la carte", "a\tb\r\nc"]
        {
            assert_eq!((damage(text), repair(text)), (vec![], None), "{text}");
        }
    }

    #[test]
    fn lost_and_control_characters_are_told_apart() {
        assert_eq!(damage("a\u{fffd}b\u{0}"), [Damage::Replaced, Damage::Control]);
        assert_eq!(repair("a\u{fffd}b\u{0}").as_deref(), Some("a\u{fffd}b"));
    }
}
