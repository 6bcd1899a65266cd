//! Names of files in a drive: absolute, without `.` and `..`, as `unix-path-resolve` 1.0.2 makes them, through
//! which every name goes in `hyperdrive`.

use crate::error::DataError;

fn is_separator(letter: char) -> bool {
    letter == '/' || letter == '\\'
}

/// The parts of a path, and whether it is absolute. `C:\`, `file:/` and `host:/` are roots too.
fn parse(path: &str) -> (bool, Vec<&str>) {
    let names: Vec<&str> = path.split(is_separator).collect();
    if names.len() > 1 && names[0].ends_with(':') {
        let root = if names[0].encode_utf16().count() == 2 || names[0] == "file:" { 1 } else { 3 };
        return (true, names.get(root..).unwrap_or_default().to_vec());
    }
    (path.starts_with(is_separator), names)
}

/// A path seen from a base, which counts as a folder.
pub(super) fn resolve(base: &str, path: &str) -> Result<String, DataError> {
    let (base, path) = (parse(base), parse(path));
    let base = match (path.0, base.0) {
        (true, _) => Vec::new(),
        (false, true) => base.1,
        (false, false) => return Err(DataError::BadRequest("a path that begins nowhere")),
    };
    let mut resolved: Vec<&str> = Vec::new();
    for name in base.into_iter().chain(path.1) {
        match name {
            "" | "." => (),
            ".." => {
                resolved.pop().ok_or(DataError::BadRequest("a path that leads out of the drive"))?;
            }
            name => resolved.push(name),
        }
    }
    Ok(format!("/{}", resolved.join("/")))
}

/// The name of a file.
pub(super) fn of_file(path: &str) -> Result<String, DataError> {
    let path = resolve("/", path)?;
    if path == "/" { Err(DataError::BadRequest("the root of a drive is no file")) } else { Ok(path) }
}

/// The name of a folder, without a slash at its end; that of the root is empty.
pub(super) fn of_folder(path: &str) -> Result<String, DataError> {
    let path = resolve("/", path)?;
    Ok(path.strip_suffix('/').unwrap_or(&path).to_owned())
}

/// A name that a foreign drive gives, which is safe to make on a disk: it means the same to every file system.
pub(super) fn is_plain(path: &str) -> bool {
    let plain = |name: &str| !matches!(name, "" | "." | "..") && name.len() < 256;
    path.strip_prefix('/').is_some_and(|path| path.split('/').all(plain)) && !path.contains(['\0', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_resolved_as_javascript_does() {
        for (path, wanted) in [
            ("a", "/a"),
            ("/a//b/./c/", "/a/b/c"),
            ("a/../b", "/b"),
            ("C:\\x\\y", "/x/y"),
            ("file:/x", "/x"),
            ("http://host/x", "/x"),
            ("a\\b", "/a/b"),
        ] {
            assert_eq!(of_file(path).as_deref(), Ok(wanted), "{path}");
        }
        assert_eq!(resolve("/a/link", "../b").as_deref(), Ok("/a/b"));
        assert_eq!(resolve("/a/link", "/c").as_deref(), Ok("/c"));
        assert!(of_file("/").is_err() && of_file("..").is_err() && of_file("").is_err());
        assert_eq!(of_folder("/").as_deref(), Ok(""));
        assert_eq!(of_folder("/a/").as_deref(), Ok("/a"));
    }

    #[test]
    fn what_would_leave_a_folder_is_not_plain() {
        for path in ["/../a", "a", "/a/../b", "/a//b", "/", "", "/a\0", "/./a", "/a\\..\\b"] {
            assert!(!is_plain(path), "{path}");
        }
        assert!(is_plain("/a/b.c") && is_plain("/..a"));
    }
}
