//! Tells Rust's code from its comments and its literals, without parsing it.
//!
//! Invariant: both texts have the lines of the source, with everything else replaced by blanks.

/// A source split in two; a character of the source is in one of the texts, or in none (inside a literal).
pub struct Split {
    pub code: String,
    pub comments: String,
}

#[derive(Clone, Copy, PartialEq)]
enum In {
    Code,
    LineComment,
    BlockComment { depth: u32 },
    Text,
    RawText { hashes: usize },
}

pub fn split(source: &str) -> Split {
    let chars: Vec<char> = source.chars().collect();
    let mut split = Split { code: String::new(), comments: String::new() };
    let (mut state, mut at) = (In::Code, 0);
    while at < chars.len() {
        let character = if state == In::Code { character_length(&chars[at..]) } else { 0 };
        if character > 0 {
            chars[at..at + character].iter().for_each(|c| split.push(In::Text, *c));
            at += character;
            continue;
        }
        let (next, length) = step(state, &chars, at);
        let whose = if state == In::Code { next } else { state };
        for &c in &chars[at..at + length] {
            split.push(whose, c);
        }
        (state, at) = (next, at + length);
    }
    split
}

impl Split {
    fn push(&mut self, whose: In, c: char) {
        let blank = if c == '\n' { '\n' } else { ' ' };
        let (code, comment) = match whose {
            In::Code => (c, blank),
            In::LineComment | In::BlockComment { .. } => (blank, c),
            In::Text | In::RawText { .. } => (blank, blank),
        };
        self.code.push(code);
        self.comments.push(comment);
    }
}

/// The state after the next token, and the token's length in characters.
fn step(state: In, chars: &[char], at: usize) -> (In, usize) {
    let c = chars[at];
    let next = chars.get(at + 1).copied().unwrap_or(' ');
    match state {
        In::Code => step_code(chars, at),
        In::LineComment => (if c == '\n' { In::Code } else { state }, 1),
        In::BlockComment { depth } => match (c, next) {
            ('/', '*') => (In::BlockComment { depth: depth + 1 }, 2),
            ('*', '/') if depth == 1 => (In::Code, 2),
            ('*', '/') => (In::BlockComment { depth: depth - 1 }, 2),
            _ => (state, 1),
        },
        In::Text => match c {
            '\\' if at + 1 < chars.len() => (state, 2),
            '"' => (In::Code, 1),
            _ => (state, 1),
        },
        In::RawText { hashes } => {
            let closes = c == '"' && chars[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
            if closes { (In::Code, 1 + hashes) } else { (state, 1) }
        }
    }
}

fn step_code(chars: &[char], at: usize) -> (In, usize) {
    let rest = &chars[at..];
    let begins = |text: &str| text.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c));
    let after_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    if begins("//") {
        return (In::LineComment, 2);
    }
    if begins("/*") {
        return (In::BlockComment { depth: 1 }, 2);
    }
    if begins("\"") {
        return (In::Text, 1);
    }
    if !after_word && (begins("r\"") || begins("r#") || begins("br\"") || begins("br#")) {
        let prefix = if rest[0] == 'b' { 2 } else { 1 };
        let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
        if rest.get(prefix + hashes) == Some(&'"') {
            return (In::RawText { hashes }, prefix + hashes + 1);
        }
    }
    (In::Code, 1)
}

/// The length of a character literal such as `'{'` or `'\n'`; 0 for anything else, such as a lifetime.
fn character_length(rest: &[char]) -> usize {
    match rest {
        ['\'', '\\', _, more @ ..] => more.iter().position(|c| *c == '\'').map_or(0, |end| end + 4),
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_code_from_comments_and_literals() {
        let split = split("a(\"x // {\"); // b\n/* c /* d */ e */ f('{', '\"', '\\'', r#\"g\"h\"#);\n");
        for gone in ["x", "b", "c", "e", "g", "{"] {
            assert!(!split.code.contains(gone), "{gone} in {}", split.code);
        }
        assert!(split.code.contains("a(") && split.code.contains("f("));
        assert!(split.comments.contains("// b") && split.comments.contains("c /* d */ e"));
        assert_eq!(split.code.lines().count(), 2);
    }

    #[test]
    fn a_lifetime_is_not_a_character() {
        assert_eq!(split("fn f<'a>(x: &'a str) {}").code, "fn f<'a>(x: &'a str) {}");
    }
}
