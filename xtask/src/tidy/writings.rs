//! The writings beside the code: the map names every crate, and every library has its reason.

use super::Violation;
use anyhow::Result;
use std::{fs, path::Path};

/// What a newcomer expects to find.
const EXPECTED: [&str; 4] = ["README.md", "ARCHITECTURE.md", "STYLE.md", "LICENSE"];

pub fn check(root: &Path, files: &[String]) -> Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for name in EXPECTED.iter().filter(|name| !files.iter().any(|file| file == *name)) {
        let what = "the file is missing".to_owned();
        violations.push(Violation { file: (*name).to_owned(), line: 1, what, mend: "write it" });
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    violations.extend(reasons(&manifest));
    if let Ok(map) = fs::read_to_string(root.join("ARCHITECTURE.md")) {
        violations.extend(crates_on_map(files, &map));
    }
    Ok(violations)
}

/// Every outside library of the workspace says beside it why it was chosen.
fn reasons(manifest: &str) -> Vec<Violation> {
    let from = "[workspace.dependencies]";
    let inside = manifest.lines().enumerate().skip_while(|(_, line)| line.trim() != from).skip(1);
    let lines = inside.take_while(|(_, line)| !line.starts_with('['));
    let unexplained = lines.filter(|(_, line)| {
        line.contains('=') && !line.starts_with('#') && !line.contains("path = ") && !line.contains(" # ")
    });
    let told = unexplained.map(|(index, line)| Violation {
        file: "Cargo.toml".into(),
        line: index + 1,
        what: format!("`{}` has no reason", line.split('=').next().unwrap_or(line).trim()),
        mend: "say in a comment at the end of the line why it was chosen",
    });
    told.collect()
}

/// Every crate's directory is on the map.
fn crates_on_map(files: &[String], map: &str) -> Vec<Violation> {
    let crates = files.iter().filter_map(|file| file.strip_suffix("/Cargo.toml"));
    let missing = crates.filter(|path| !map.contains(*path)).map(|path| Violation {
        file: "ARCHITECTURE.md".into(),
        line: 1,
        what: format!("`{path}` is not on the map"),
        mend: "say in a line what it is, and what it must not import",
    });
    missing.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_a_reason_is_found() {
        let manifest = "[workspace.dependencies]\n# All of them:\nours = { path = \"a\" }\n\
            serde = \"1\" # data\nrand = \"1\"\n\n[x]\ny = \"1\"\n";
        let found = reasons(manifest);
        assert_eq!((found.len(), found[0].line), (1, 5));
    }

    #[test]
    fn a_crate_that_is_not_on_the_map_is_found() {
        let files = ["core/net/Cargo.toml", "sim/Cargo.toml", "Cargo.toml"].map(String::from);
        assert_eq!(crates_on_map(&files, "`core/net` is ...").len(), 1);
    }
}
