//! [`Hold`]: that a path's store is in use, and which store that is, said where it outlasts the store's files.
//!
//! Whoever runs while the file is removed goes on with the one that is open, and a process that comes to the path finds nothing: it would
//! make another store, and a cluster of its own. So everybody who uses a store has a lock on a small file beside it, `.NAME-lock`, whose
//! content says which store it is. The system drops the lock with the process, however that ends; the file stays. `rm NAME*` leaves it
//! alone, and if it is removed all the same, those who run put it back as soon as they miss the store.
//!
//! These locks belong to an open file, not to a process: other descriptors of the same file do not drop them.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

/// Which store it is.
pub(super) type Identity = [u8; 16];

/// The lock, as long as it lives.
#[derive(Debug)]
pub(super) struct Hold(File);

/// What came of an attempt at it.
pub(super) enum Taken {
    /// Nobody uses the path: the lock excludes everybody else until it is [shared](Hold::share).
    Alone(Hold),
    /// Others use this store.
    Shared(Hold, Option<Identity>),
    /// Somebody is just coming, or the file was removed a moment ago.
    Busy,
}

impl Hold {
    /// Makes the file if it is not there.
    pub(super) fn take(path: &Path) -> io::Result<Taken> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let hold = Hold(options.open(path)?);
        let alone = locked(hold.0.try_lock())?;
        if !alone && !locked(hold.0.try_lock_shared())? || !hold.is_at(path) {
            return Ok(Taken::Busy);
        }
        if alone {
            return Ok(Taken::Alone(hold));
        }
        let theirs = hold.says()?;
        Ok(Taken::Shared(hold, theirs))
    }

    /// Lets others in who use this store. `false`: others came meanwhile, and theirs is another one.
    pub(super) fn share(&self, identity: Identity) -> io::Result<bool> {
        if self.says()? != Some(identity) {
            self.0.set_len(0)?;
            (&self.0).rewind()?;
            (&self.0).write_all(&identity)?;
        }
        self.0.unlock()?;
        Ok(locked(self.0.try_lock_shared())? && self.says()? == Some(identity))
    }

    fn says(&self) -> io::Result<Option<Identity>> {
        (&self.0).rewind()?;
        let mut bytes = Vec::new();
        (&self.0).take(17).read_to_end(&mut bytes)?;
        Ok(bytes.try_into().ok())
    }

    /// Whether whoever comes to this path finds this lock.
    #[cfg(unix)]
    pub(super) fn is_at(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        matches!((self.0.metadata(), std::fs::metadata(path)), (Ok(a), Ok(b)) if same(&a, &b))
    }

    /// Where an open file can neither be deleted nor renamed, a path keeps its meaning.
    #[cfg(not(unix))]
    pub(super) fn is_at(&self, _: &Path) -> bool {
        true
    }
}

fn locked(tried: Result<(), TryLockError>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
