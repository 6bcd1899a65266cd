//! The merged file tree of an image, in memory: metadata here, file contents in a spool at known offsets.
//!
//! Invariants:
//! - Nothing of an image ever touches the host's file system: paths and symbolic links are resolved in this tree alone.
//! - Node 0 is the root; a directory has exactly one parent.
//! - White-outs remove only what earlier layers brought, in whatever order the entries of a layer come.

use super::error::EntryFault;
use std::collections::{BTreeMap, VecDeque};

/// Linux gives up after so many links, too.
const MAX_LINKS_FOLLOWED: u32 = 40;
/// NAME_MAX of Linux.
const MAX_NAME_BYTES: usize = 255;

/// A file's owner, mode, time and extended attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The permission bits (07777) alone; the kind of file is [`Kind`].
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime_s: i64,
    pub mtime_ns: u32,
    /// Full names (`security.capability`), sorted, each once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory(BTreeMap<Box<[u8]>, Dirent>),
    /// Where the content lies in the spool.
    File {
        offset: u64,
        size: u64,
    },
    Symlink(Box<[u8]>),
    Fifo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent {
    pub node: u32,
    /// The layer that wrote it, or something beneath it, last.
    layer: u32,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub meta: Meta,
    pub kind: Kind,
}

/// See the module's head.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    layer: u32,
    metadata_bytes: u64,
}

/// A directory that a path led to: the nodes from the root on, each with its name in the one before.
struct Place {
    steps: Vec<(u32, Box<[u8]>)>,
}

impl Place {
    fn node(&self) -> u32 {
        self.steps.last().map_or(0, |step| step.0)
    }
}

impl Default for Tree {
    fn default() -> Self {
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let root = Node { meta, kind: Kind::Directory(BTreeMap::new()) };
        Tree { nodes: vec![root], layer: 0, metadata_bytes: 0 }
    }
}

impl Tree {
    /// The entries to come belong to the next layer.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// All nodes ever made, also those that a later layer removed.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A measure of the memory that the tree takes.
    pub fn metadata_bytes(&self) -> u64 {
        self.metadata_bytes
    }

    /// Makes a directory, or gives an existing one new metadata.
    pub fn put_directory(&mut self, path: &[u8], meta: Meta) -> Result<(), EntryFault> {
        let names = components(path)?;
        let Some((name, parents)) = names.split_last() else {
            self.set_meta(0, meta);
            return Ok(());
        };
        let parent = self.make_directories(parents)?;
        if let Some(dirent) = self.child(parent, name)
            && matches!(self.nodes[dirent.node as usize].kind, Kind::Directory(_))
        {
            self.set_meta(dirent.node, meta);
            self.put_dirent(parent, name, dirent.node);
            return Ok(());
        }
        let node = self.add_node(meta, Kind::Directory(BTreeMap::new()));
        self.put_dirent(parent, name, node);
        Ok(())
    }

    /// Puts a file, symbolic link or FIFO, in place of whatever was there.
    pub fn put_leaf(&mut self, path: &[u8], meta: Meta, kind: Kind) -> Result<(), EntryFault> {
        let names = components(path)?;
        let (name, parents) = names.split_last().ok_or(EntryFault::ReplacesRoot)?;
        let parent = self.make_directories(parents)?;
        let node = self.add_node(meta, kind);
        self.put_dirent(parent, name, node);
        Ok(())
    }

    /// Puts another name for a file that the image has. A target from the root (`/a`) is meant in the image.
    pub fn put_hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), EntryFault> {
        let missing = || EntryFault::HardLink { target: lossy(target) };
        let target_names = components(target.strip_prefix(b"/").unwrap_or(target)).map_err(|_| missing())?;
        let (target_name, target_parents) = target_names.split_last().ok_or_else(missing)?;
        let place = self.find_directory(target_parents)?.ok_or_else(missing)?;
        let found = self.child(place.node(), target_name).ok_or_else(missing)?;
        if matches!(self.nodes[found.node as usize].kind, Kind::Directory(_)) {
            return Err(missing());
        }
        let names = components(path)?;
        let (name, parents) = names.split_last().ok_or(EntryFault::ReplacesRoot)?;
        let parent = self.make_directories(parents)?;
        self.put_dirent(parent, name, found.node);
        Ok(())
    }

    /// `.wh.NAME`: earlier layers' `path` is gone.
    pub fn white_out(&mut self, path: &[u8]) -> Result<(), EntryFault> {
        let names = components(path)?;
        let (name, parents) = names.split_last().ok_or(EntryFault::BadName)?;
        let Some(place) = self.find_directory(parents)? else { return Ok(()) };
        let layer = self.layer;
        let Some(dirent) = self.child(place.node(), name) else { return Ok(()) };
        if dirent.layer == layer {
            self.remove_earlier(dirent.node);
        } else if let Kind::Directory(children) = &mut self.nodes[place.node() as usize].kind {
            children.remove(*name);
        }
        Ok(())
    }

    /// `.wh..wh..opq`: whatever earlier layers had in this directory is gone.
    pub fn make_opaque(&mut self, path: &[u8]) -> Result<(), EntryFault> {
        let names = components(path)?;
        if let Some(place) = self.find_directory(&names)? {
            self.remove_earlier(place.node());
        }
        Ok(())
    }

    /// Removes what earlier layers had beneath a node.
    fn remove_earlier(&mut self, top: u32) {
        let layer = self.layer;
        let mut waiting = vec![top];
        while let Some(node) = waiting.pop() {
            if let Kind::Directory(children) = &mut self.nodes[node as usize].kind {
                children.retain(|_, dirent| dirent.layer == layer);
                waiting.extend(children.values().map(|dirent| dirent.node));
            }
        }
    }

    fn child(&self, directory: u32, name: &[u8]) -> Option<Dirent> {
        match &self.nodes[directory as usize].kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn add_node(&mut self, meta: Meta, kind: Kind) -> u32 {
        let index = self.nodes.len() as u32;
        let target = if let Kind::Symlink(target) = &kind { target.len() } else { 0 };
        self.metadata_bytes += (target + size_of::<Node>()) as u64;
        self.nodes.push(Node { meta: Meta::default(), kind });
        self.set_meta(index, meta);
        index
    }

    fn set_meta(&mut self, node: u32, meta: Meta) {
        let xattrs: usize = meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.metadata_bytes += xattrs as u64;
        self.nodes[node as usize].meta = meta;
    }

    fn put_dirent(&mut self, parent: u32, name: &[u8], node: u32) {
        self.metadata_bytes += (name.len() + size_of::<Dirent>()) as u64;
        let dirent = Dirent { node, layer: self.layer };
        if let Kind::Directory(children) = &mut self.nodes[parent as usize].kind {
            children.insert(name.into(), dirent);
        }
    }

    /// Walks to a directory, makes what is missing, and marks the way as this layer's.
    fn make_directories(&mut self, names: &[&[u8]]) -> Result<u32, EntryFault> {
        let Some(place) = self.walk(names, true)? else { return Err(EntryFault::BadName) };
        let layer = self.layer;
        let mut parent = 0;
        for (node, name) in &place.steps {
            if let Kind::Directory(children) = &mut self.nodes[parent as usize].kind
                && let Some(dirent) = children.get_mut(name)
            {
                dirent.layer = layer;
            }
            parent = *node;
        }
        Ok(place.node())
    }

    /// Where a regular file's content is in the spool, and its size; links on the way are followed, one at the end not.
    pub fn find_file(&mut self, path: &[u8]) -> Result<Option<(u64, u64)>, EntryFault> {
        let names = components(path)?;
        let Some((name, parents)) = names.split_last() else { return Ok(None) };
        let Some(place) = self.find_directory(parents)? else { return Ok(None) };
        let found = self.child(place.node(), name);
        Ok(found.and_then(|dirent| match self.nodes[dirent.node as usize].kind {
            Kind::File { offset, size } => Some((offset, size)),
            _ => None,
        }))
    }

    fn find_directory(&mut self, names: &[&[u8]]) -> Result<Option<Place>, EntryFault> {
        self.walk(names, false)
    }

    /// Resolves a path as a process would whose root is the image's: absolute links start at that root.
    /// `None` when a part is missing and `make` is not asked for.
    fn walk(&mut self, names: &[&[u8]], make: bool) -> Result<Option<Place>, EntryFault> {
        let mut place = Place { steps: Vec::new() };
        let mut ahead: VecDeque<Box<[u8]>> = names.iter().map(|name| (*name).into()).collect();
        let mut links_followed = 0;
        // What is ahead comes from a link only while links are followed; then `..` is the link's fault.
        let mut last_link: Box<[u8]> = Box::default();
        while let Some(name) = ahead.pop_front() {
            if *name == *b".." {
                if place.steps.pop().is_none() {
                    return Err(EntryFault::LinkLeavesRoot { link: lossy(&last_link) });
                }
                continue;
            }
            let here = place.node();
            let Some(dirent) = self.child(here, &name) else {
                if !make {
                    return Ok(None);
                }
                let meta = Meta { mode: 0o755, ..Meta::default() };
                let node = self.add_node(meta, Kind::Directory(BTreeMap::new()));
                self.put_dirent(here, &name, node);
                place.steps.push((node, name));
                continue;
            };
            match &self.nodes[dirent.node as usize].kind {
                Kind::Directory(_) => place.steps.push((dirent.node, name)),
                Kind::Symlink(target) => {
                    links_followed += 1;
                    if links_followed > MAX_LINKS_FOLLOWED {
                        return Err(EntryFault::LinkLoop);
                    }
                    if target.starts_with(b"/") {
                        place.steps.clear();
                    }
                    for part in target.split(|b| *b == b'/').rev().filter(|part| !matches!(*part, b"" | b"."))
                    {
                        ahead.push_front(part.into());
                    }
                    last_link = name;
                }
                _ if make => return Err(EntryFault::ParentNotDirectory { parent: lossy(&name) }),
                _ => return Ok(None),
            }
        }
        Ok(Some(place))
    }
}

/// The names that a path is made of. A path that climbs or starts at the root is refused, not repaired.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, EntryFault> {
    if path.starts_with(b"/") {
        return Err(EntryFault::AbsolutePath);
    }
    if path.is_empty() || path.contains(&0) {
        return Err(EntryFault::BadName);
    }
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(EntryFault::ParentPath),
            name if name.len() > MAX_NAME_BYTES => return Err(EntryFault::BadName),
            name => names.push(name),
        }
    }
    Ok(names)
}

/// A path for people: control characters and bad UTF-8 are shown as escapes, very long ones cut.
pub fn lossy(path: &[u8]) -> String {
    let mut shown = String::new();
    for character in String::from_utf8_lossy(&path[..path.len().min(300)]).chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
