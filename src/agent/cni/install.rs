//! Puts the plugin in place and takes it away: the program in the plugins' directory, the entry in the configuration that
//! the container runtime uses. What is there already as it should be is not touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::{self, Fingerprint};
use super::{Settings, conflist};
use crate::base::{Error, Result, code};
use crate::cni::{NAME, outside};

/// A file of one plugin that became a list is kept under its name and this.
const KEPT: &str = ".before-warren";

/// A file that nobody has written to for this long will not become whole by itself.
const ABANDONED: Duration = Duration::from_secs(5);

/// Longer than any configuration.
const MAX_BYTES: u64 = 1 << 20;

/// Keeps the plugin in place.
#[derive(Debug)]
pub(super) struct Installer {
    settings: Settings,
    entry: String,
    /// The program that was compared last and is the right one.
    program: Option<Fingerprint>,
    cleared: bool,
}

/// What a file is for the runtime.
enum Kind {
    /// Several plugins, one after the other.
    List,
    /// One plugin; the runtime makes a list of it.
    Single,
}

impl Installer {
    pub(super) fn new(settings: Settings, entry: String) -> Self {
        Self { settings, entry, program: None, cleared: false }
    }

    /// The directories in which others may change something.
    pub(super) fn directories(&self) -> [&Path; 2] {
        [&self.settings.conf_dir, &self.settings.bin_dir]
    }

    /// Puts in place what is not. Returns whether there was anything to do.
    ///
    /// # Errors
    /// CNI_INSTALL: something is missing or cannot be changed.
    pub(super) fn ensure(&mut self) -> Result<bool> {
        if !self.cleared {
            clear(&self.settings)?;
            self.cleared = true;
        }
        let program = self.ensure_program()?;
        let entry = self.ensure_entry()?;
        Ok(program || entry)
    }

    fn ensure_program(&mut self) -> Result<bool> {
        let path = self.settings.bin_dir.join(NAME);
        let now = files::fingerprint(&path);
        if now.is_some() && now == self.program {
            return Ok(false);
        }
        let failed = |error| broken(&path, error);
        let differs = now.is_none() || !files::same_content(&self.settings.program, &path).map_err(failed)?;
        if differs {
            let mut program = fs::File::open(&self.settings.program).map_err(|error| broken(&self.settings.program, error))?;
            files::put(&path, &mut program, 0o755).map_err(failed)?;
            tracing::info!(path = %path.display(), "the CNI plugin's program is in place");
        }
        self.program = files::fingerprint(&path);
        Ok(differs)
    }

    /// The runtime uses the first file by name.
    fn ensure_entry(&self) -> Result<bool> {
        let directory = &self.settings.conf_dir;
        for (path, kind) in configurations(directory)? {
            let edited = read(&path).and_then(|text| match kind {
                Kind::Single if conflist::is_loopback(&text) => Ok(None),
                Kind::Single => conflist::to_list(&text, &self.entry).map(|list| Some((text, Some(list)))),
                Kind::List => conflist::with_entry(&text, &self.entry).map(|list| Some((text, list))),
            });
            match (edited, kind) {
                (Ok(None), _) => {}
                (Ok(Some((_, None))), _) => return Ok(false),
                (Ok(Some((text, Some(list)))), Kind::List) => {
                    if !files::replace(&path, &text, &list).map_err(|error| broken(&path, error))? {
                        let text = format!("{}: somebody else is writing it", path.display());
                        return Err(Error::new(&code::CNI_INSTALL, text));
                    }
                    tracing::info!(path = %path.display(), "the CNI plugin's entry is in place");
                    return Ok(true);
                }
                (Ok(Some((_, Some(list)))), Kind::Single) => {
                    convert(&path, &list).map_err(|error| broken(&path, error))?;
                    tracing::info!(path = %path.display(), "became a list with the CNI plugin's entry in it");
                    return Ok(true);
                }
                // Some runtimes go on to the next file, others end here; a file that is being written is waited for.
                (Err(reason), _) if is_abandoned(&path) => {
                    tracing::warn!(path = %path.display(), reason, "not a CNI configuration that can be used, the next one is taken");
                }
                (Err(reason), _) => return Err(Error::new(&code::CNI_INSTALL, format!("{}: {reason}", path.display()))),
            }
        }
        Err(Error::new(&code::CNI_INSTALL, format!("no usable CNI configuration in {} yet", directory.display())))
    }
}

/// See [`super::uninstall`].
pub(super) fn remove(settings: &Settings) -> Result<()> {
    let mut first = clear(settings);
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            tracing::error!(%error, "a part of the CNI plugin could not be removed");
            if first.is_ok() {
                first = Err(error);
            }
        }
    };
    // The entry first: from then on nobody looks for the program.
    match configurations(&settings.conf_dir) {
        Ok(files) => {
            for (path, _) in files.into_iter().filter(|(_, kind)| matches!(kind, Kind::List)) {
                note(remove_entry(&path));
            }
        }
        Err(error) => note(Err(error)),
    }
    let plugin = [settings.bin_dir.join(NAME), settings.bin_dir.join(outside::FILE), settings.socket.clone()];
    for path in plugin {
        note(files::remove(&path).map_err(|error| broken(&path, error)));
    }
    first
}

fn remove_entry(path: &Path) -> Result<()> {
    let failed = |error| broken(path, error);
    let Ok(text) = read(path) else { return Ok(()) };
    let Ok(Some(rest)) = conflist::without_entry(&text) else { return Ok(()) };
    if let Some(single) = kept(path) {
        let original = single.with_extension("");
        if original.exists() {
            // Whoever owns it has written it anew.
            files::remove(&single).map_err(failed)?;
        } else {
            fs::rename(&single, &original).map_err(failed)?;
        }
        return files::remove(path).map_err(failed);
    }
    if files::replace(path, &text, &rest).map_err(failed)? {
        return Ok(());
    }
    Err(Error::new(&code::CNI_INSTALL, format!("{}: somebody else is writing it", path.display())))
}

/// Writes the list beside the file of one plugin and moves that one out of the runtime's sight.
fn convert(path: &Path, list: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path)?.permissions().mode();
    files::put(&path.with_extension("conflist"), &mut list.as_bytes(), mode)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(KEPT);
    fs::rename(path, path.with_file_name(name))
}

/// The file of one plugin that the list at `path` was made from.
fn kept(path: &Path) -> Option<PathBuf> {
    ["conf", "json"].map(|extension| path.with_extension(format!("{extension}{KEPT}"))).into_iter().find(|path| path.exists())
}

/// The files that runtimes look at, in their order.
fn configurations(directory: &Path) -> Result<Vec<(PathBuf, Kind)>> {
    let failed = |error| broken(directory, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let kind = match path.extension().and_then(|extension| extension.to_str()) {
            Some("conflist") => Kind::List,
            Some("conf" | "json") => Kind::Single,
            _ => continue,
        };
        if !path.is_dir() {
            found.push((path, kind));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

fn read(path: &Path) -> std::result::Result<String, conflist::Reason> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_BYTES {
        return Err(format!("longer than {MAX_BYTES} bytes"));
    }
    fs::read_to_string(path).map_err(|error| error.to_string())
}

fn is_abandoned(path: &Path) -> bool {
    let written = fs::metadata(path).and_then(|meta| meta.modified()).ok();
    written.and_then(|written| written.elapsed().ok()).is_some_and(|age| age > ABANDONED)
}

/// Removes what was left unfinished.
fn clear(settings: &Settings) -> Result<()> {
    for directory in [&settings.conf_dir, &settings.bin_dir] {
        files::remove_unfinished(directory).map_err(|error| broken(directory, error))?;
    }
    Ok(())
}

fn broken(path: &Path, error: io::Error) -> Error {
    Error::caused(&code::CNI_INSTALL, path.display().to_string(), error)
}

#[cfg(test)]
mod tests;
