//! The bearer tokens of proxies: one for each node that the mesh names or has named, in a file that only its owner can
//! read. Who removes the file revokes the token.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::RwLock;
use rand::TryRngCore;
use rand::rngs::OsRng;

use super::auth::LONGEST;
use crate::base::{Error, Result, Str, code};

/// Bytes of chance in a token.
const STRENGTH: usize = 32;

/// Tokens of nodes on which no pod runs; of what is above, none is in force.
const MAX_IDLE: usize = 16 * 1024;

/// A file that is being written. No node can be called so, and it is not longer than the longest name.
const NEW: &str = ".new";

/// Who may call: the proxies of these nodes.
pub struct Tokens {
    directory: PathBuf,
    by_node: RwLock<BTreeMap<Str, String>>,
}

impl Tokens {
    /// The tokens in `directory`, which is made if it does not exist (0700).
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(directory: &Path) -> Result<Self> {
        private_directory(directory).map_err(|error| failed(directory, error))?;
        Ok(Self { directory: directory.to_owned(), by_node: RwLock::default() })
    }

    /// Makes tokens of nodes that have none. Nodes that are not named keep theirs for as long as its file is there: the
    /// last pod of a node may go and another come, and nobody brings the node a new token then.
    ///
    /// A token of a named node in a file that others could read is replaced: it may have been read.
    ///
    /// # Errors
    /// A file cannot be read or written; the tokens of the other nodes are in force all the same.
    pub fn follow<'a>(&self, nodes: impl Iterator<Item = &'a Str>) -> Result<()> {
        let mut tokens = BTreeMap::new();
        let mut first_error = None;
        let mut take = |node: &Str, token: io::Result<Option<String>>| match token {
            Ok(token) => tokens.extend(token.map(|token| (node.clone(), token))),
            Err(error) => first_error = first_error.take().or(Some(failed(&self.directory.join(&**node), error))),
        };
        let named: BTreeSet<&Str> = nodes.collect();
        for node in &named {
            take(node, self.read_or_make(node).map(Some));
        }
        let idle = self.nodes_with_a_file().map_err(|error| failed(&self.directory, error));
        for node in idle.iter().flatten().filter(|node| !named.contains(node)).take(MAX_IDLE) {
            take(node, self.read(node));
        }
        *self.by_node.write() = tokens;
        idle?;
        first_error.map_or(Ok(()), Err)
    }

    /// Whether the node has a token.
    pub fn knows(&self, node: &str) -> bool {
        self.by_node.read().contains_key(node)
    }

    /// The node whose token it is, if its file is still there.
    pub fn holder(&self, token: &str) -> Option<Str> {
        // All are compared, so that the time taken does not tell which one came close.
        let tokens = self.by_node.read();
        let found = tokens.iter().fold(None, |found, (node, known)| if is_equal(known, token) { Some(node.clone()) } else { found });
        found.filter(|node| self.directory.join(&**node).symlink_metadata().is_ok())
    }

    fn read_or_make(&self, node: &str) -> io::Result<String> {
        if let Some(token) = self.read(node)? {
            return Ok(token);
        }
        let mut bytes = [0; STRENGTH];
        OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        write_private(&self.directory.join(node), token.as_bytes())?;
        Ok(token)
    }

    /// The token in the file, if there is one that can be relied on.
    fn read(&self, node: &str) -> io::Result<Option<String>> {
        let path = self.directory.join(node);
        let file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut token = String::new();
        let meta = file.metadata()?;
        let private = meta.mode() & 0o077 == 0 && meta.uid() == nix::unistd::geteuid().as_raw();
        file.take(LONGEST as u64).read_to_string(&mut token)?;
        let token = token.trim();
        if private && token.len() >= STRENGTH {
            return Ok(Some(token.to_owned()));
        }
        tracing::warn!(path = %path.display(), "the token is or was another user's to read, or is too short: it is void");
        Ok(None)
    }

    fn nodes_with_a_file(&self) -> io::Result<BTreeSet<Str>> {
        let mut nodes = BTreeSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str()
                && name != NEW
                && entry.file_type()?.is_file()
            {
                nodes.insert(name.into());
            }
        }
        Ok(nodes)
    }
}

/// Says which nodes have one, never what it is.
impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("directory", &self.directory).field("nodes", &self.by_node.read().keys()).finish()
    }
}

/// Takes the same time wherever the first difference is.
fn is_equal(known: &str, given: &str) -> bool {
    let (known, given) = (known.as_bytes(), given.as_bytes());
    known.len() == given.len() && std::hint::black_box(known.iter().zip(given).fold(0, |sum, (a, b)| sum | (a ^ b))) == 0
}

/// Makes a directory that only its owner can enter, with its parents.
pub(super) fn private_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::create_dir_all(parent)?,
        _ => {}
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

/// Writes a file that only its owner can read; a reader sees it whole or not at all.
pub(super) fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    write_file(path, contents, 0o600)
}

/// Writes a file of that mode; a reader sees it whole or not at all.
pub(super) fn write_file(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let new = path.with_file_name(NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(new, path)
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::caused(&code::BAD_FILE, format!("token {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn each_node_has_a_token_of_its_own_until_its_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let tokens = Tokens::open(&path).unwrap();
        let (one, two): (Str, Str) = ("n1".into(), "n2".into());
        tokens.follow([&one, &two].into_iter()).unwrap();
        let read = |node: &str| fs::read_to_string(path.join(node)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.join("n1")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(URL_SAFE_NO_PAD.decode(read("n1")).unwrap().len(), 32);
        assert_ne!(read("n1"), read("n2"));
        assert_eq!(&*tokens.holder(&read("n2")).unwrap(), "n2");

        let (first, second) = (read("n1"), read("n2"));
        let again = Tokens::open(&path).unwrap();
        again.follow([&one].into_iter()).unwrap();
        assert_eq!(read("n1"), first, "a token stays the same over a restart");
        assert_eq!(&*again.holder(&second).unwrap(), "n2", "also that of a node without pods");
        fs::remove_file(path.join("n2")).unwrap();
        assert_eq!(again.holder(&second), None, "revoked at once");
        again.follow([&one].into_iter()).unwrap();
        assert!(!path.join("n2").exists() && !again.knows("n2"));
        again.follow([&one, &two].into_iter()).unwrap();
        assert_ne!(read("n2"), second, "a node that is named gets another");
        assert_eq!(again.holder(&second), None);

        fs::set_permissions(path.join("n2"), fs::Permissions::from_mode(0o644)).unwrap();
        again.follow([&one].into_iter()).unwrap();
        assert!(!again.knows("n2"), "a token that others could read is void");
        fs::set_permissions(path.join("n1"), fs::Permissions::from_mode(0o644)).unwrap();
        again.follow([&one].into_iter()).unwrap();
        assert_ne!(read("n1"), first, "a token that others could read is replaced");
        assert_eq!(fs::metadata(path.join("n1")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn any_names_of_nodes_keep_apart() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let (short, new, long): (Str, Str, Str) = ("n1".into(), "n1.new".into(), format!("{}x", "a.".repeat(126)).into());
        tokens.follow([&new].into_iter()).unwrap();
        let token = fs::read_to_string(dir.path().join("n1.new")).unwrap();
        tokens.follow([&short, &new, &long].into_iter()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("n1.new")).unwrap(), token);
        assert!([&short, &new, &long].iter().all(|node| tokens.knows(node)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else is left there");
    }

    #[test]
    fn whatever_is_no_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        tokens.follow([&Str::from("n1")].into_iter()).unwrap();
        let token = fs::read_to_string(dir.path().join("n1")).unwrap();
        for other in ["", &token[1..], &format!("{token}x"), &token.to_uppercase()] {
            assert_eq!(tokens.holder(other), None, "{other}");
        }
    }
}
