//! What may be written of text that comes from a file. Markup itself is escaped by `maud`.

use std::fmt::Write as _;

use maud::{Escaper, Markup, Render, html};

/// Longest name: address, interface, namespace, pod.
const LONGEST_NAME: usize = 160;
/// Longest sentence or command.
const LONGEST_PROSE: usize = 2_000;

/// Most lines of a list: evidence, fixes, devices.
pub(super) const MOST_LINES: usize = 40;

/// A text as it may be written.
pub(super) struct Told<'a> {
    text: &'a str,
    most: usize,
}

/// A name.
pub(super) const fn name(text: &str) -> Told<'_> {
    Told {
        text,
        most: LONGEST_NAME,
    }
}

/// A sentence or a command.
pub(super) const fn prose(text: &str) -> Told<'_> {
    Told {
        text,
        most: LONGEST_PROSE,
    }
}

impl Told<'_> {
    /// Its characters, those that would hide or turn others made visible.
    pub(super) fn characters(&self) -> impl Iterator<Item = char> + '_ {
        let cut = self.text.chars().nth(self.most).map(|_| '…');
        let visible = |letter: char| {
            if is_hidden(letter) {
                '\u{fffd}'
            } else {
                letter
            }
        };
        self.text.chars().take(self.most).map(visible).chain(cut)
    }
}

impl Render for Told<'_> {
    fn render_to(&self, buffer: &mut String) {
        let mut room = [0; 4];
        let mut escaper = Escaper::new(buffer);
        for letter in self.characters() {
            // Writing to a string cannot fail.
            let _ = escaper.write_str(letter.encode_utf8(&mut room));
        }
    }
}

/// Says how many lines of a list are not written.
pub(super) fn rest(lines: usize) -> Markup {
    html! {
        @if lines > MOST_LINES { p.quiet { "and " (lines - MOST_LINES) " more" } }
    }
}

/// Room on the page for a list of things; what does not fit is counted.
pub(super) struct Room {
    bytes: usize,
    left_out: usize,
}

impl Room {
    /// So many bytes.
    pub(super) const fn new(bytes: usize) -> Self {
        Self { bytes, left_out: 0 }
    }

    /// A thing, where there is room for it; behind the first that does not fit there is none.
    pub(super) fn take(&mut self, thing: Markup) -> Option<Markup> {
        if thing.0.len() > self.bytes {
            self.bytes = 0;
            self.left_out += 1;
            return None;
        }
        self.bytes -= thing.0.len();
        Some(thing)
    }

    /// Says what did not fit.
    pub(super) fn rest(&self, what: &str) -> Markup {
        html! {
            @if self.left_out > 0 {
                p.calm { "No room for " (count(self.left_out as u64, what)) " more; the capture has them." }
            }
        }
    }
}

/// Controls, and Unicode's marks for the direction of text.
fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A length of time in a person's unit.
pub(super) fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} µs", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// `1 packet`, `2 packets`.
pub(super) fn count(number: u64, one: &str) -> String {
    let many = if number == 1 { "" } else { "s" };
    format!("{number} {one}{many}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_cut_and_cannot_turn_around() {
        let hostile = "\"><script>&\u{202e}\u{0}";
        let mut written = String::new();
        name(hostile).render_to(&mut written);
        assert_eq!(written, "&quot;&gt;&lt;script&gt;&amp;\u{fffd}\u{fffd}");
        let mut long = String::new();
        name(&"ä".repeat(1 << 20)).render_to(&mut long);
        assert_eq!(long.chars().count(), LONGEST_NAME + 1);
    }
}
