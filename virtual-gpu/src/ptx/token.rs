//! Words, numbers and punctuation, each with its line; comments are left out.

use super::Error;

/// A token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A name, a directive or an opcode with its dots; also a number as it is spelled.
    Word(&'a str),
    /// What quotes hold.
    Text(&'a str),
    /// One character.
    Mark(char),
}

/// Tokens with their lines.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token<'_>, u32)>, Error> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.');
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'\n' => {
                line += 1;
                at += 1;
            }
            _ if byte.is_ascii_whitespace() => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - at);
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let length = text.as_bytes()[at..].windows(2).position(|pair| pair == b"*/");
                let length = length.ok_or_else(|| Error::new(line, "a comment without an end"))? + 2;
                line += bytes[at..at + length].iter().filter(|&&b| b == b'\n').count() as u32;
                at += length;
            }
            b'"' => {
                let length = bytes[at + 1..].iter().position(|&b| b == b'"');
                let length = length.ok_or_else(|| Error::new(line, "a text without an end"))?;
                let inner = text.get(at + 1..at + 1 + length);
                found.push((Token::Text(inner.ok_or_else(|| Error::new(line, "a text that is none"))?), line));
                at += length + 2;
            }
            _ if is_word(byte) => {
                let mut end = at + bytes[at..].iter().position(|&b| !is_word(b)).unwrap_or(bytes.len() - at);
                // `.L2::128B` and `.level::eviction` are one word.
                while bytes[end..].starts_with(b"::") {
                    let rest = end + 2;
                    end = rest + bytes[rest..].iter().position(|&b| !is_word(b)).unwrap_or(bytes.len() - rest);
                }
                found.push((Token::Word(&text[at..end]), line));
                at = end;
            }
            _ if byte.is_ascii_graphic() => {
                found.push((Token::Mark(char::from(byte)), line));
                at += 1;
            }
            _ => return Err(Error::new(line, format!("the byte {byte:#04x} has no place in PTX"))),
        }
    }
    Ok(found)
}
