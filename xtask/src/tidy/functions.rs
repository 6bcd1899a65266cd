//! Functions fit on a screen.

use super::Violation;

const MAX_LINES: usize = 70;

/// `code` is the source without comments and literals.
pub fn check(file: &str, code: &str) -> Vec<Violation> {
    let lines: Vec<&str> = code.lines().collect();
    let mut violations = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let length = length(&lines[index..]);
        if length > MAX_LINES {
            violations.push(Violation {
                file: file.to_owned(),
                line: index + 1,
                what: format!("function `{name}` has {length} lines, more than {MAX_LINES}"),
                mend: "give its parts names of their own",
            });
        }
    }
    violations
}

fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let words = ["pub", "async", "const", "unsafe", "extern", "default"];
    let is_item = before.split_whitespace().all(|w| words.contains(&w) || w.starts_with("pub("));
    is_item.then(|| after.split(['(', '<']).next().unwrap_or(after))
}

/// From the signature to the closing brace; 0 for a declaration without a body.
fn length(lines: &[&str]) -> usize {
    let (mut depth, mut parens, mut opened) = (0_usize, 0_usize, false);
    for (index, line) in lines.iter().enumerate() {
        for c in line.chars() {
            match c {
                '(' | '[' => parens += 1,
                ')' | ']' => parens = parens.saturating_sub(1),
                ';' if !opened && parens == 0 => return 0,
                '{' => (depth, opened) = (depth + 1, true),
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        if opened && depth == 0 {
            return index + 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_function_is_found_and_a_short_one_is_not() {
        let body = |lines| {
            format!("impl A {{\n    pub async fn f(x: [u8; 2]) {{\n{}    }}\n}}\n", "a();\n".repeat(lines))
        };
        assert_eq!(check("a.rs", &body(68)), vec![]);
        let found = check("a.rs", &body(69));
        assert_eq!((found.len(), found[0].line), (1, 2));
    }

    #[test]
    fn a_declaration_has_no_length() {
        assert_eq!(length(&["    fn f(&self) -> [u8; 4];", "}"]), 0);
    }
}
