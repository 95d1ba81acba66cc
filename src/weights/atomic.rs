//! Files and folders that appear whole or not at all: written beside their place, flushed to the disk, renamed over it.
//!
//! The one way in which the program writes anything that it will read again. What a killed process leaves behind has a
//! name of its own ([`is_leftover`]), so that it is never taken for the real thing.

use super::Error;
use std::{
    fs::{self, File, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// End of the name of everything that is not whole yet.
const SUFFIX: &str = ".tmp";

/// The folder that a path lies in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a file could be written at `path`: its folder exists, and no folder has its name. To be asked before the work whose
/// result it will hold.
///
/// # Errors
/// [`Error::Io`] with the reason.
pub fn check_place(path: &Path) -> Result<(), Error> {
    let io = |source: io::Error| Error::io("write", path, source);
    if !parent(path).metadata().map_err(io)?.is_dir() {
        return Err(io(io::ErrorKind::NotADirectory.into()));
    }
    match path.is_dir() {
        true => Err(io(io::ErrorKind::IsADirectory.into())),
        false => Ok(()),
    }
}

/// Writes `path` through `fill` by way of a temporary file beside it. An error leaves what was there before.
pub(super) fn write_file<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> Result<(), E>,
) -> Result<(), E> {
    let io = |source| E::from(Error::io("write", path, source));
    check_place(path)?;
    // The process's umask decides, as for any other file; temporary files are private by default.
    let permissions = Permissions::from_mode(0o666);
    let prefix = prefix(path);
    let temporary =
        tempfile::Builder::new().prefix(&prefix).suffix(SUFFIX).permissions(permissions).tempfile_in(parent(path));
    // The reason alone: the temporary file's name would mislead.
    let temporary = temporary.map_err(|error| io(error.kind().into()))?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut writer)?;
    writer.flush().map_err(io)?;
    drop(writer);
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    Ok(sync(parent(path))?)
}

/// Replaces `path` by `bytes`: a kill at any instant leaves the old file or the whole new one.
///
/// # Errors
/// [`Error::Io`]; what was there stays.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_file(path, |out| out.write_all(bytes).map_err(|source| Error::io("write", path, source)))
}

/// Makes `path` the folder that `fill` writes into the empty one that it is given: flushed, then renamed into place. A folder
/// that was there is put aside first and removed last; a kill between leaves none at `path`.
///
/// # Errors
/// Whatever `fill` gives, and [`Error::Io`]; what was there stays, and no half folder is left.
pub fn replace_folder<E: From<Error>>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let folder = parent(path);
    let io = |source| Error::io("write", path, source);
    fs::create_dir_all(folder).map_err(|source| Error::io("create", folder, source))?;
    let prefix = prefix(path);
    let beside = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(SUFFIX).permissions(Permissions::from_mode(0o777));
        builder.tempdir_in(folder).map_err(|error| io(error.kind().into()))
    };
    let temporary = beside()?;
    // By the path as it was given, for messages: the temporary folder's own is absolute.
    let inner = path.with_file_name(temporary.path().file_name().unwrap_or_default());
    fill(&inner)?;
    for entry in fs::read_dir(&inner).map_err(io)? {
        File::open(entry.map_err(io)?.path()).and_then(|file| file.sync_all()).map_err(io)?;
    }
    sync(&inner)?;
    let aside = match fs::symlink_metadata(path) {
        Ok(_) => {
            let aside = beside()?;
            fs::rename(path, aside.path().join("old")).map_err(io)?;
            Some(aside)
        }
        Err(_) => None,
    };
    if let Err(source) = fs::rename(temporary.path(), path) {
        if let Some(aside) = &aside {
            fs::rename(aside.path().join("old"), path).map_err(io)?;
        }
        return Err(io(source).into());
    }
    // Its path is the folder's now; there is nothing left to remove.
    let _: std::path::PathBuf = temporary.keep();
    Ok(sync(folder)?)
}

/// Flushes a file, or a folder's entries, so that it survives a power cut.
///
/// # Errors
/// [`Error::Io`].
pub fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|source| Error::io("sync", path, source))
}

/// Whether a name is that of something that a killed process left half-written.
pub fn is_leftover(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(SUFFIX)
}

/// Removes what killed processes left half-written in `folder`. Only for a folder that no other process writes to.
///
/// # Errors
/// [`Error::Io`]; a folder that does not exist has no leftovers.
pub fn remove_leftovers(folder: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io("read", folder, source)),
    };
    for entry in entries {
        let entry = entry.map_err(|source| Error::io("read", folder, source))?;
        if is_leftover(&entry.file_name().to_string_lossy()) {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|source| Error::io("remove", &path, source))?;
        }
    }
    Ok(())
}

/// Beginning of a temporary name for `path`.
fn prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_stays_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        write_atomically(&path, b"abc").unwrap();
        write_atomically(&path, b"").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(names(folder.path()), ["f"]);
    }

    #[test]
    fn a_folder_is_replaced_whole_and_a_failure_keeps_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/best");
        let write = |text: &'static str| {
            move |inner: &Path| {
                write_atomically(&inner.join("a"), text.as_bytes())?;
                if text == "fails" { Err(Error::io("write", inner, io::ErrorKind::StorageFull.into())) } else { Ok(()) }
            }
        };
        replace_folder(&path, write("one")).unwrap();
        replace_folder(&path, write("two")).unwrap();
        replace_folder(&path, write("fails")).unwrap_err();
        assert_eq!(fs::read(path.join("a")).unwrap(), b"two");
        assert_eq!(names(&folder.path().join("deep")), ["best"]);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o700, 0o700);
    }

    #[test]
    fn only_leftovers_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".step-3.Ab12.tmp", ".step-4.tmp"] {
            assert!(is_leftover(name));
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("part"), "x").unwrap();
        }
        for name in [".hidden", "step-3", "a.tmp", ".config.toml.x.tmp"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove_leftovers(folder.path()).unwrap();
        assert_eq!(names(folder.path()), [".hidden", "a.tmp", "step-3"]);
        remove_leftovers(&folder.path().join("absent")).unwrap();
    }
}
