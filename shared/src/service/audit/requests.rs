//! What the operator tells about requests received: from authorities, or from anybody else.
//!
//! In: a text file, plain or with the simplest of Markdown. Out: headings, paragraphs and lists of text. Never: markup, links or pictures:
//! what the file says is shown as the words it consists of.

use crate::service::page::Html;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of the file.
pub const REQUESTS_LIMIT: u64 = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requests(Vec<Block>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Block {
    Heading(String),
    Paragraph(String),
    List(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestsFault {
    #[error("cannot be read")]
    Unreadable,
    #[error("is larger than 65,536 bytes")]
    TooLarge,
    #[error("is not UTF-8")]
    NotText,
}

impl Requests {
    pub fn read(file: &Path) -> Result<Self, RequestsFault> {
        let mut bytes = Vec::new();
        let opened = File::open(file).map_err(|_| RequestsFault::Unreadable)?;
        let read = opened.take(REQUESTS_LIMIT + 1).read_to_end(&mut bytes);
        let length = read.map_err(|_| RequestsFault::Unreadable)?;
        if length as u64 > REQUESTS_LIMIT {
            return Err(RequestsFault::TooLarge);
        }
        let text = String::from_utf8(bytes).map_err(|_| RequestsFault::NotText)?;
        Ok(Self::parse(&text))
    }

    /// An empty line ends a block; `#` begins a heading, `-` or `*` an item of a list, everything else is a paragraph.
    fn parse(text: &str) -> Self {
        let mut blocks = Vec::new();
        let mut is_open = false;
        for line in text.lines().map(str::trim) {
            let item = line.strip_prefix("- ").or_else(|| line.strip_prefix("* "));
            if line.is_empty() {
                is_open = false;
            } else if line.starts_with('#') {
                blocks.push(Block::Heading(line.trim_matches('#').trim().to_owned()));
                is_open = false;
            } else if let Some(item) = item {
                match blocks.last_mut() {
                    Some(Block::List(items)) if is_open => items.push(item.to_owned()),
                    _ => blocks.push(Block::List(vec![item.to_owned()])),
                }
                is_open = true;
            } else {
                let last = match blocks.last_mut() {
                    Some(Block::Paragraph(text)) => Some(text),
                    Some(Block::List(items)) => items.last_mut(),
                    _ => None,
                };
                match last.filter(|_| is_open) {
                    Some(text) => {
                        text.push(' ');
                        text.push_str(line);
                    }
                    None => blocks.push(Block::Paragraph(line.to_owned())),
                }
                is_open = true;
            }
        }
        Self(blocks)
    }

    /// Below an `h2`.
    pub fn show(&self, html: &mut Html) {
        for block in &self.0 {
            match block {
                Block::Heading(text) => html.line("h3", text),
                Block::Paragraph(text) => html.line("p", text),
                Block::List(items) => html.list(items),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_apart_by_empty_lines() {
        let text = "# 2026 #\n\nNone was\nreceived.\n\nTwo:\n- one\n  and more\n* two\n\n- three\nafter\n\nlast\n";
        assert_eq!(
            Requests::parse(text).0,
            [
                Block::Heading("2026".into()),
                Block::Paragraph("None was received.".into()),
                Block::Paragraph("Two:".into()),
                Block::List(vec!["one and more".into(), "two".into()]),
                Block::List(vec!["three after".into()]),
                Block::Paragraph("last".into()),
            ]
        );
    }

    #[test]
    fn a_file_is_bounded_and_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("requests.md");
        assert_eq!(Requests::read(&file), Err(RequestsFault::Unreadable));
        std::fs::write(&file, vec![b'a'; REQUESTS_LIMIT as usize]).unwrap();
        assert!(Requests::read(&file).is_ok());
        std::fs::write(&file, vec![b'a'; REQUESTS_LIMIT as usize + 1]).unwrap();
        assert_eq!(Requests::read(&file), Err(RequestsFault::TooLarge));
        std::fs::write(&file, [0xFF]).unwrap();
        assert_eq!(Requests::read(&file), Err(RequestsFault::NotText));
    }
}
