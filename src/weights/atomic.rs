//! Files that appear whole or not at all: written beside their place, flushed to the disk, renamed over it.

use super::Error;
use std::{
    fs::{File, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

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
    let folder = parent(path);
    // The process's umask decides, as for any other file; temporary files are private by default.
    let permissions = Permissions::from_mode(0o666);
    let temporary = tempfile::Builder::new().prefix(".unflip-").permissions(permissions).tempfile_in(folder);
    // The reason alone: the temporary file's name would mislead.
    let temporary = temporary.map_err(|error| io(error.kind().into()))?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut writer)?;
    writer.flush().map_err(io)?;
    drop(writer);
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    sync_folder(folder).map_err(io)
}

/// Flushes a folder's entries, so that a rename survives a power cut.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
