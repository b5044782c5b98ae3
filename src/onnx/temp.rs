//! A file that has no name until it is put into place: whoever ends the process at any moment leaves nothing behind.
//!
//! On Linux it is opened with `O_TMPFILE` (open(2)) and gets a name with `linkat`, which is renamed over the target at once.
//! Where the file system or the system does not offer that, it has a name from the start and is removed when dropped.

use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;
use tempfile::NamedTempFile;

/// A file that is being written.
pub enum Temp {
    /// Without a name.
    #[cfg(target_os = "linux")]
    Nameless(File),
    /// With one that begins with `.onnxzip-`.
    Named(NamedTempFile),
}

impl Temp {
    /// A new file in a folder.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn new_in(folder: &Path) -> Result<Temp> {
        #[cfg(target_os = "linux")]
        if let Ok(file) = nameless::open(folder) {
            return Ok(Temp::Nameless(file));
        }
        named(folder).map(Temp::Named)
    }

    /// The file.
    pub fn file(&mut self) -> &mut File {
        match self {
            #[cfg(target_os = "linux")]
            Temp::Nameless(file) => file,
            Temp::Named(file) => file.as_file_mut(),
        }
    }

    /// Bytes written so far.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn len(&mut self) -> Result<u64> {
        Ok(self.file().metadata()?.len())
    }

    /// Puts it in the place of `target`, in the same folder, in one step.
    ///
    /// # Errors
    /// When the file system refuses; the target is then as it was.
    pub fn persist(self, target: &Path) -> Result<()> {
        let file = match self {
            #[cfg(target_os = "linux")]
            Temp::Nameless(mut file) => nameless::name(&mut file, super::folder_of(target))?,
            Temp::Named(file) => file,
        };
        file.persist(target).with_context(|| format!("{}", target.display()))?;
        Ok(())
    }
}

fn named(folder: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".onnxzip-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the umask, like any new file
    let file = builder.tempfile_in(folder);
    file.with_context(|| format!("cannot write in folder {}", folder.display()))
}

#[cfg(target_os = "linux")]
mod nameless {
    use super::{NamedTempFile, Result, named};
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
    use std::fs::File;
    use std::io::{self, Seek};
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use tempfile::TempPath;

    /// Opens one.
    pub fn open(folder: &Path) -> io::Result<File> {
        let mode = Mode::from_raw_mode(0o666); // less the umask, like any new file
        Ok(rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode)?.into())
    }

    /// Gives it a name; by copying where it cannot be linked.
    pub fn name(file: &mut File, folder: &Path) -> Result<NamedTempFile> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut taken = named(folder)?;
        let free = taken.path().with_extension("new");
        if linkat(CWD, path.as_str(), CWD, &free, AtFlags::SYMLINK_FOLLOW).is_ok() {
            return Ok(NamedTempFile::from_parts(
                file.try_clone()?,
                TempPath::try_from_path(free)?,
            ));
        }
        file.rewind()?;
        io::copy(file, taken.as_file_mut())?;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn nothing_has_a_name_until_it_is_put_into_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = || std::fs::read_dir(folder.path()).expect("a folder").count();
        let target = folder.path().join("out");
        std::fs::write(&target, "old").expect("written");
        let mut temp = Temp::new_in(folder.path()).expect("writable");
        temp.file().write_all(b"new").expect("written");
        assert_eq!(temp.len().expect("a length"), 3);
        if cfg!(target_os = "linux") {
            assert_eq!(names(), 1);
        }
        temp.persist(&target).expect("renamed");
        assert_eq!(names(), 1);
        assert_eq!(std::fs::read(&target).expect("there"), b"new");
    }

    #[test]
    fn a_named_file_is_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("out");
        let mut temp = Temp::Named(named(folder.path()).expect("writable"));
        temp.file().write_all(b"new").expect("written");
        temp.persist(&target).expect("renamed");
        assert_eq!(std::fs::read(&target).expect("there"), b"new");
        assert!(Temp::new_in(&folder.path().join("nowhere")).is_err());
    }
}
