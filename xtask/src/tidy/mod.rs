//! Holds the walls between the crates and the form of the sources, as STYLE.md and ARCHITECTURE.md describe them.
//!
//! Each rule is a function from text to violations, tested on text that breaks it; `the_tree_is_tidy` runs them all.

mod functions;
mod lexer;
mod sources;
mod walls;
mod writings;

use crate::{paths, shell};
use anyhow::{Result, bail};
use std::fmt;

/// One thing that is wrong, where, and what to do about it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub file: String,
    pub line: usize,
    pub what: String,
    pub mend: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; mend: {}", self.file, self.line, self.what, self.mend)
    }
}

pub fn run() -> Result<()> {
    let violations = check()?;
    for violation in &violations {
        eprintln!("{violation}");
    }
    if !violations.is_empty() {
        bail!("tidy: {} violations", violations.len());
    }
    println!("tidy: the walls hold and the sources are in form");
    Ok(())
}

fn check() -> Result<Vec<Violation>> {
    let mut violations = walls::check(&metadata()?);
    let files = tracked_and_new()?;
    for path in files.iter().filter(|path| path.ends_with(".rs")) {
        let Ok(text) = std::fs::read_to_string(paths::root().join(path)) else { continue };
        violations.extend(sources::check(path, &text));
    }
    violations.extend(writings::check(&paths::root(), &files)?);
    violations.sort();
    violations.dedup();
    Ok(violations)
}

fn metadata() -> Result<serde_json::Value> {
    let mut cargo = shell::command("cargo", &["metadata", "--format-version", "1", "--locked"]);
    Ok(serde_json::from_str(&shell::output(cargo.current_dir(paths::root()))?)?)
}

/// The files that are in the repository, or would be at the next `git add`.
fn tracked_and_new() -> Result<Vec<String>> {
    let mut git = shell::command("git", &["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = shell::output(git.current_dir(paths::root()))?;
    Ok(listed.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        let violations = super::check().expect("tidy reads the tree");
        let told: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(told.is_empty(), "\n{}", told.join("\n"));
    }
}
