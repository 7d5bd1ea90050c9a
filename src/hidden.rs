//! Text from files as it may be shown: file names reach terminals, pages and logs.

/// Characters that a screen does not show but obeys: controls, ends of lines, and marks that turn the direction of
/// writing.
pub(crate) fn is_hidden(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || turns
}

/// The character, or a mark that something hidden stood here.
pub(crate) fn shown(c: char) -> char {
    if is_hidden(c) { '\u{fffd}' } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_screen_obeys_is_marked_and_text_is_kept() {
        for c in "\u{1b}\n\u{7f}\u{85}\u{61c}\u{200e}\u{2028}\u{2029}\u{202e}\u{2066}\u{2069}".chars() {
            assert_eq!(shown(c), '\u{fffd}', "{c:?}");
        }
        let text = "a\u{e9} \u{5d0}\u{627}\u{4e2d}\u{200d}\u{2027}\u{202f}\u{1f600}";
        assert_eq!(text.chars().map(shown).collect::<String>(), text);
    }
}
