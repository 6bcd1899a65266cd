//! The form of one source file, and what the pure crates may not touch.

use super::{Violation, functions, lexer};

const MAX_LINES: usize = 600;
const MAX_TEST_LINES: usize = 800;
const MAX_COLUMNS: usize = 120;

/// Crates that are told the time and asked nothing of the outside: no IO, no clock, no threads, no randomness.
const PURE: [&str; 4] = ["core/model/", "core/net/", "core/compute/", "core/control/"];

/// What pure crates never name.
const IMPURE: [&str; 14] = [
    "std::fs",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::os::unix::net",
    "std::process",
    "std::thread",
    "std::env",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "File::open",
    "tokio::",
];

/// Drawers into which everything falls.
const DRAWERS: [&str; 5] = ["common", "util", "utils", "helpers", "shared"];

pub fn check(file: &str, source: &str) -> Vec<Violation> {
    let split = lexer::split(source);
    let mut violations = form(file, source);
    violations.extend(functions::check(file, &split.code));
    violations.extend(promises(file, &split));
    violations.extend(unsafety(file, &split));
    if PURE.iter().any(|pure| file.starts_with(pure)) && !is_test(file) {
        violations.extend(impurities(file, without_tests(&split.code)));
    }
    violations
}

fn is_test(file: &str) -> bool {
    file.contains("/tests/") || file.contains("/benches/") || file.ends_with("tests.rs")
}

fn violation(file: &str, line: usize, what: String, mend: &'static str) -> Violation {
    Violation { file: file.to_owned(), line, what, mend }
}

fn form(file: &str, source: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    if !source.starts_with("//!") {
        let mend = "open it with `//!`, what it is and its invariants";
        found.push(violation(file, 1, "the file does not say what it is".into(), mend));
    }
    let (lines, max) = (source.lines().count(), if is_test(file) { MAX_TEST_LINES } else { MAX_LINES });
    if lines > max {
        found.push(violation(
            file,
            max + 1,
            format!("{lines} lines, more than {max}"),
            "split it by what it does",
        ));
    }
    for (index, line) in source.lines().enumerate() {
        let columns = line.chars().count();
        if columns > MAX_COLUMNS {
            let what = format!("{columns} columns, more than {MAX_COLUMNS}");
            found.push(violation(file, index + 1, what, "break the line"));
        }
    }
    let parts = file.trim_end_matches(".rs").split('/');
    if let Some(drawer) = parts.into_iter().find(|part| DRAWERS.contains(part)) {
        found.push(violation(file, 1, format!("`{drawer}` says nothing"), "name it for what it does"));
    }
    found
}

/// Nothing is promised for later, and no test is set aside.
fn promises(file: &str, split: &lexer::Split) -> Vec<Violation> {
    let mut found = Vec::new();
    let marks = ["TODO", "FIXME", "XXX", "HACK"];
    for (index, line) in split.comments.lines().enumerate() {
        if let Some(mark) = marks.iter().find(|mark| has_word(line, mark)) {
            found.push(violation(file, index + 1, format!("`{mark}`"), "do it now, or open an issue"));
        }
    }
    for (index, line) in split.code.lines().enumerate() {
        if line.contains("#[ignore") {
            found.push(violation(file, index + 1, "a test is set aside".into(), "make it run, or remove it"));
        }
        if line.contains("todo!(") || line.contains("unimplemented!(") {
            found.push(violation(file, index + 1, "a stub".into(), "write it, or leave it out"));
        }
    }
    found
}

/// Besides edge/host: the one ioctl of the guest's init that nobody wraps safely, and the VMM with its bare-metal
/// guest.
const UNSAFE_PLACES: [&str; 3] = ["edge/host/", "bin/cloudpal-init/src/reseed.rs", "bin/cloudpal-vmm/"];

/// `unsafe` lives in edge/host, each use under a line that says why it is sound.
fn unsafety(file: &str, split: &lexer::Split) -> Vec<Violation> {
    let comments: Vec<&str> = split.comments.lines().collect();
    let mut found = Vec::new();
    for (index, _) in split.code.lines().enumerate().filter(|(_, line)| has_word(line, "unsafe")) {
        if !UNSAFE_PLACES.iter().any(|place| file.starts_with(place)) {
            let mend = "use a safe wrapper, or move it into edge/host";
            found.push(violation(file, index + 1, "`unsafe` outside edge/host".into(), mend));
        } else if !comments[index.saturating_sub(6)..=index].iter().any(|line| line.contains("SAFETY")) {
            let mend = "say in a `// SAFETY:` line above it why it is sound";
            found.push(violation(file, index + 1, "`unsafe` without its reason".into(), mend));
        }
    }
    found
}

fn impurities(file: &str, code: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let grouped = line.replace("std::{", "std::").replace(", ", " std::");
        let text = if line.contains("use std::{") { &grouped } else { line };
        if let Some(impure) = IMPURE.iter().find(|impure| text.contains(**impure)) {
            let mend = "take it as an argument, or ask for it through a port";
            found.push(violation(file, index + 1, format!("`{impure}` in a crate that does no IO"), mend));
        }
    }
    found
}

/// The code before the file's test module.
fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]\nmod ").map_or(code, |at| &code[..at])
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, source: &str) -> Vec<String> {
        check(file, source).into_iter().map(|v| format!("{} {}", v.line, v.what)).collect()
    }

    #[test]
    fn a_file_in_form_passes() {
        assert_eq!(found("core/net/src/a.rs", "//! A.\n\nuse std::net::Ipv4Addr;\n"), Vec::<String>::new());
    }

    #[test]
    fn form_is_held() {
        assert_eq!(found("edge/host/src/a.rs", "fn f() {}\n"), ["1 the file does not say what it is"]);
        assert_eq!(found("sim/src/util.rs", "//! A.\n"), ["1 `util` says nothing"]);
        assert_eq!(found("sim/src/a.rs", &format!("//! {}\n", "x".repeat(120))).len(), 1);
        assert_eq!(found("sim/src/a.rs", &"//! A.\n".repeat(601)).len(), 1);
        assert_eq!(found("sim/tests/a.rs", &"//! A.\n".repeat(601)).len(), 0);
    }

    #[test]
    fn promises_and_stubs_are_found_outside_texts_only() {
        let mark = ["TO", "DO"].concat();
        assert_eq!(found("sim/src/a.rs", &format!("//! A.\n// {mark}: b\n")).len(), 1);
        assert_eq!(found("sim/src/a.rs", &format!("//! A.\nconst A: &str = \"{mark}\";\n")).len(), 0);
        assert_eq!(found("sim/src/a.rs", "//! A.\n#[ignore]\nfn f() { todo!() }\n").len(), 2);
    }

    #[test]
    fn unsafe_has_a_place_and_a_reason() {
        assert_eq!(found("sim/src/a.rs", "//! A.\n// SAFETY: b\nunsafe { c() }\n").len(), 1);
        assert_eq!(found("edge/host/src/a.rs", "//! A.\nunsafe { c() }\n").len(), 1);
        assert_eq!(found("edge/host/src/a.rs", "//! A.\n// SAFETY: b\nunsafe { c() }\n").len(), 0);
    }

    #[test]
    fn pure_crates_touch_nothing_but_their_tests_may() {
        assert_eq!(found("core/net/src/a.rs", "//! A.\nuse std::fs;\n").len(), 1);
        assert_eq!(found("core/net/src/a.rs", "//! A.\nuse std::{fmt, thread};\n").len(), 1);
        assert_eq!(
            found("core/net/src/a.rs", "//! A.\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n").len(),
            0
        );
        assert_eq!(found("edge/host/src/a.rs", "//! A.\nuse std::fs;\n").len(), 0);
    }
}
