//! Writing HTML, SVG and XML so that no text can ever become markup.
//!
//! Only literals of this program are written as they are; everything else is escaped.

use std::fmt::{Display, Write};

/// Well-formed markup.
#[derive(Debug, Default, Clone)]
pub struct Markup(String);

/// An attribute and its value.
pub type Attribute<'a> = (&'static str, &'a dyn Display);

impl Markup {
    /// A literal.
    pub fn raw(&mut self, literal: &'static str) -> &mut Self {
        self.0.push_str(literal);
        self
    }

    /// What may be anything.
    pub fn text(&mut self, text: impl Display) -> &mut Self {
        escape(&mut self.0, &text.to_string());
        self
    }

    pub fn open(&mut self, tag: &'static str, attributes: &[Attribute]) -> &mut Self {
        self.tag(tag, attributes);
        self.raw(">")
    }

    pub fn close(&mut self, tag: &'static str) -> &mut Self {
        self.raw("</").raw(tag).raw(">")
    }

    /// An element that holds nothing.
    pub fn empty(&mut self, tag: &'static str, attributes: &[Attribute]) -> &mut Self {
        self.tag(tag, attributes);
        self.raw("/>")
    }

    /// An element that holds text alone.
    pub fn element(
        &mut self,
        tag: &'static str,
        attributes: &[Attribute],
        text: impl Display,
    ) -> &mut Self {
        self.open(tag, attributes).text(text).close(tag)
    }

    pub fn append(&mut self, other: &Self) -> &mut Self {
        self.0.push_str(&other.0);
        self
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn tag(&mut self, tag: &'static str, attributes: &[Attribute]) {
        self.raw("<").raw(tag);
        for (name, value) in attributes {
            self.raw(" ").raw(name).raw("=\"").text(value).raw("\"");
        }
    }
}

fn escape(out: &mut String, text: &str) {
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // In attributes they would become blanks.
            '\n' | '\t' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(letter));
            }
            // XML has no way to say these (XML 1.0, section 2.2), and these turn text around.
            _ if letter.is_control()
                || matches!(letter, '\u{fffe}' | '\u{ffff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                out.push('\u{fffd}');
            }
            _ => out.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_never_becomes_markup() {
        let mut markup = Markup::default();
        markup.element(
            "a",
            &[("title", &"\"><script>")],
            "</a><script>'&\u{0}\u{202e}",
        );
        assert_eq!(
            markup.as_str(),
            "<a title=\"&quot;&gt;&lt;script&gt;\">&lt;/a&gt;&lt;script&gt;&#39;&amp;\u{fffd}\u{fffd}</a>"
        );
    }

    #[test]
    fn lines_stay_lines_in_attributes() {
        let mut markup = Markup::default();
        markup.empty("a", &[("message", &"one\ntwo")]);
        assert_eq!(markup.as_str(), "<a message=\"one&#10;two\"/>");
    }
}
