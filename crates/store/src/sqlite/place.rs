//! [`Place`]: which file a path names, and [`Seat`]: a connection to it that notices when the path names another.
//!
//! Two properties of files make this a module of its own. **POSIX locks belong to a process**, and closing *any* descriptor of a file drops
//! all of them: a process that opens and closes the file beside SQLite loses SQLite's locks, and the next program that looks at the file
//! believes to be the last one and deletes the log under everybody. So nothing here opens the file, except to make it. **A path names
//! another file** after a rename, a deletion, a restore: a connection goes on with the one that it has, where nobody else looks. So the
//! path is compared with what is open, by device and inode, before each transaction and after it.

use super::Synchronous;
use super::hold::{Hold, Identity, Taken};
use super::schema;
use super::worker::Pause;
use crate::open::OpenError;
use core::fmt;
use core::time::Duration;
use parking_lot::Mutex;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// How long somebody who comes waits for others who come at the same time, and for those who are just ending.
const COMING: Duration = Duration::from_secs(10);
const ENDING: Duration = Duration::from_secs(1);

/// Held while a file is made, so that no connection of this process has it open yet when it is closed again.
static MAKING: Mutex<()> = Mutex::new(());
/// What the connections of this process have open.
static SEATED: Mutex<Vec<Files>> = Mutex::new(Vec::new());

/// A file, whatever its name.
type Inode = (u64, u64);

/// The three files of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Files {
    main: Inode,
    log: Option<Inode>,
    index: Option<Inode>,
}

/// The path of a store.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    synchronous: Synchronous,
    /// Of the store that was found here first: what else comes to be here is not it.
    identity: OnceLock<Identity>,
    /// Who comes while this process runs sees that it does.
    hold: Mutex<Option<Hold>>,
}

/// The path does not name the file that was opened: one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gone(String);

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Gone {}

/// A connection, and what it has open.
struct Seated {
    /// INVARIANT: there until it is dropped.
    db: Option<Connection>,
    files: Files,
}

impl Drop for Seated {
    fn drop(&mut self) {
        // Under the lock: once it is closed, other files may get these numbers.
        let mut seated = SEATED.lock();
        drop(self.db.take());
        if let Some(at) = seated.iter().position(|files| *files == self.files) {
            seated.swap_remove(at);
        }
    }
}

/// Where one connection sits, or sat.
pub(super) struct Seat {
    place: Arc<Place>,
    seated: Option<Seated>,
    /// What the last connection had open.
    last: Files,
}

impl Place {
    /// Where the store at `path` is, or is to be: its folder has to be there, and it has to be a file that can be private.
    pub(super) fn new(path: &Path, synchronous: Synchronous) -> Result<Place, OpenError> {
        let path = std::path::absolute(path).map_err(|source| failed(path, source))?;
        let name = path.display();
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                return Err(OpenError::Refused(format!("`{name}` is a directory: write `sqlite:{}`", path.join("sessions.db").display())));
            }
            Ok(found) if !found.is_file() => return Err(OpenError::Refused(format!("`{name}` is not a file that can hold a store"))),
            _ => {}
        }
        for end in ["-wal", "-shm", "-journal"] {
            if let Some(main) = path.to_str().and_then(|text| text.strip_suffix(end)) {
                return Err(OpenError::Refused(format!("`{name}` is a part of the store `{main}`: use that")));
            }
        }
        Ok(Place { path, synchronous, identity: OnceLock::new(), hold: Mutex::new(None) })
    }

    /// Opens it for the first time; it is made if it is not there and nobody uses one that was.
    pub(super) fn sit(self: &Arc<Place>, wanted: &dyn Fn() -> bool) -> Result<Seat, OpenError> {
        let mut held = self.hold.lock();
        let seated = match &*held {
            Some(_) => self.open(wanted, None)?,
            None => {
                let (hold, seated) = self.enter(wanted)?;
                *held = Some(hold);
                seated
            }
        };
        Ok(Seat { place: Arc::clone(self), last: seated.files, seated: Some(seated) })
    }

    /// Becomes one of those who use the store here: of those who do already, if there are any, and then it has to be theirs.
    fn enter(&self, wanted: &dyn Fn() -> bool) -> Result<(Hold, Seated), OpenError> {
        let (name, lock) = (self.name(), self.lock());
        let mut pause = Pause::new();
        loop {
            let (why, patience) = match Hold::take(&lock).map_err(|source| self.unlockable(&lock, source))? {
                Taken::Alone(hold) => {
                    let seated = make(&self.path).and_then(|()| self.open(wanted, None)).inspect_err(|_| {
                        // As if nobody had looked; whoever finds it removed makes another.
                        drop(std::fs::remove_file(&lock));
                    })?;
                    keep_owner(&lock, &self.path);
                    if hold.share(self.identity()).map_err(|source| failed(&lock, source))? {
                        return Ok((hold, seated));
                    }
                    ("was replaced while it was opened", ENDING)
                }
                Taken::Shared(..) if !self.path.exists() => (
                    "is not there any more, and who has it open still runs: put it back, or end those nodes and gateways before one begins \
                     anew, for a new file is a new cluster",
                    ENDING,
                ),
                Taken::Shared(hold, theirs) => {
                    // Whoever shares it has said which it is.
                    match self.open(wanted, Some(theirs.unwrap_or_default())) {
                        Ok(seated) => return Ok((hold, seated)),
                        Err(OpenError::Foreign(_)) => {}
                        Err(error) => return Err(error),
                    }
                    (
                        "is not the store that nodes and gateways have open here who still run: put theirs back, or end them before one \
                         begins anew with this one",
                        ENDING,
                    )
                }
                Taken::Busy => ("is just opened by another process, which does not get on with it", COMING),
            };
            if pause.waited() >= patience || !wanted() {
                return Err(OpenError::Refused(format!("`{name}` {why}")));
            }
            pause.wait();
        }
    }

    /// The path names something else. What others see by may have been removed with the rest.
    fn hold_on(&self) {
        let lock = self.lock();
        let mut held = self.hold.lock();
        if held.as_ref().is_some_and(|hold| hold.is_at(&lock)) {
            return;
        }
        let ours = self.identity();
        // If it cannot be put back now, it is tried again with the next call.
        match Hold::take(&lock) {
            Ok(Taken::Alone(hold)) if hold.share(ours).unwrap_or(false) => *held = Some(hold),
            Ok(Taken::Shared(hold, theirs)) if theirs == Some(ours) => *held = Some(hold),
            _ => {}
        }
    }

    /// Why the file by which others see that a store is in use cannot be had.
    fn unlockable(&self, lock: &Path, error: io::Error) -> OpenError {
        match error.kind() {
            io::ErrorKind::NotFound => {
                let folder = lock.parent().unwrap_or(lock).display();
                failed(&self.path, io::Error::new(error.kind(), format!("there is no folder `{folder}`: make it")))
            }
            io::ErrorKind::PermissionDenied => {
                let access = access(lock).unwrap_or_default();
                let why = format!("this process must be able to read and to write it, and to make files in its folder{access}");
                OpenError::Failed { what: lock.display().to_string(), source: Box::new(Explained { why, source: error.into() }) }
            }
            _ => failed(lock, error),
        }
    }

    /// Beside the path as it is written, whatever it is a link to: that is where others come.
    fn lock(&self) -> PathBuf {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push("-lock");
        self.path.with_file_name(name)
    }

    /// INVARIANT: it has been open.
    fn identity(&self) -> Identity {
        self.identity.get().copied().unwrap_or_default()
    }

    /// The three files that the path names now.
    fn files(&self) -> io::Result<Files> {
        let there = |path: &Path| match inode(path) {
            Ok(inode) => Ok(Some(inode)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let main = inode(&self.path)?;
        // SQLite keeps them beside the file itself, not beside a link to it.
        let real = match std::fs::symlink_metadata(&self.path)?.is_symlink() {
            true => std::fs::canonicalize(&self.path)?,
            false => self.path.clone(),
        };
        Ok(Files { main, log: there(&beside(&real, "-wal"))?, index: there(&beside(&real, "-shm"))? })
    }

    /// Opens what is there, if it is the store that was here, or else `theirs`.
    fn open(&self, wanted: &dyn Fn() -> bool, theirs: Option<Identity>) -> Result<Seated, OpenError> {
        keep_private(&self.path)?;
        self.connect(wanted, theirs).map_err(|error| self.explained(error))
    }

    fn connect(&self, wanted: &dyn Fn() -> bool, theirs: Option<Identity>) -> Result<Seated, OpenError> {
        let before = {
            // Looked at under the lock: another connection that is seated meanwhile makes the log first.
            let seated = SEATED.lock();
            let before = self.files().map_err(|source| failed(&self.path, source))?;
            // Connections of one process share the log's index: a new one must not get the index of a log that is gone.
            if seated.iter().any(|files| files.main == before.main && *files != before) {
                let why = "its log was removed, and another connection of this process still has the old one";
                return Err(failed(&self.path, io::Error::other(why)));
            }
            before
        };
        let ours = self.identity.get().copied().or(theirs);
        let db = schema::open(&self.path, self.synchronous, wanted, |identity| ours.is_none() || ours == identity)?;
        let identity = schema::identity(&db).map_err(|source| OpenError::Failed { what: self.name(), source: source.into() })?;
        if *self.identity.get_or_init(|| identity) != identity {
            return Err(OpenError::Foreign(format!("`{}` is another store than the one that was open", self.name())));
        }
        let files = self.files().map_err(|source| failed(&self.path, source))?;
        if files.main != before.main || files.log.is_none() || files.index.is_none() {
            return Err(failed(&self.path, io::Error::other("it was replaced while it was opened")));
        }
        SEATED.lock().push(files);
        Ok(Seated { db: Some(db), files })
    }

    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// What the operating system's refusal means, if that can be seen from here.
    fn explained(&self, error: OpenError) -> OpenError {
        let OpenError::Failed { what, source } = error else { return error };
        let access = access(&self.path).unwrap_or_default();
        match source.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code) {
            Some(rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::PermissionDenied) => {
                let why = format!("this process must be able to read and to write it, and to make files in its folder{access}");
                OpenError::Failed { what, source: Box::new(Explained { why, source }) }
            }
            _ => OpenError::Failed { what, source },
        }
    }
}

impl Seat {
    /// The connection, once it is clear that the path still names what it has open. If the path names the store again, in another file or
    /// with another log, that is opened.
    pub(super) fn db(&mut self, wanted: &dyn Fn() -> bool) -> Result<&Connection, Gone> {
        let place = Arc::clone(&self.place);
        self.seat(wanted).inspect_err(|_| place.hold_on())
    }

    fn seat(&mut self, wanted: &dyn Fn() -> bool) -> Result<&Connection, Gone> {
        let files = self.look()?;
        if self.seated.as_ref().is_none_or(|seated| seated.files != files) {
            if let Some(seated) = self.seated.take() {
                self.last = seated.files;
                seated.leave(&files);
            }
            self.seated = Some(self.again(&files, wanted)?);
        }
        let db = self.seated.as_ref().and_then(|seated| seated.db.as_ref());
        db.ok_or_else(|| Gone(format!("`{}` is not open", self.place.name())))
    }

    /// Whether the path names, after the work, what it was done in.
    pub(super) fn verify(&self) -> Result<(), Gone> {
        let files = self.look()?;
        match &self.seated {
            Some(seated) if seated.files == files => Ok(()),
            _ => Err(Gone(format!("`{}` was replaced, or its log was, while it was in use", self.place.name()))),
        }
    }

    fn look(&self) -> Result<Files, Gone> {
        self.place.files().map_err(|error| {
            let name = self.place.name();
            Gone(match error.kind() {
                io::ErrorKind::NotFound => format!(
                    "`{name}` is not there any more: put it back, or end all nodes before one begins anew, for a new file is a new cluster"
                ),
                _ => format!("`{name}` cannot be looked at any more: {error}"),
            })
        })
    }

    /// The store that the path names now, if it is the one that was here.
    fn again(&self, files: &Files, wanted: &dyn Fn() -> bool) -> Result<Seated, Gone> {
        let name = self.place.name();
        // The log belongs to the file that it was written for; over another one it would make a mixture of both.
        let left = |now: Option<Inode>, then: Option<Inode>| now.is_some() && now == then;
        if files.main != self.last.main && (left(files.log, self.last.log) || left(files.index, self.last.index)) {
            return Err(Gone(format!(
                "`{name}` was replaced, and the log of the former file still lies beside it: remove `{name}-wal` and `{name}-shm`"
            )));
        }
        let seated = self.place.open(wanted, None).map_err(|error| match error {
            OpenError::Failed { what, source } => Gone(format!("cannot open `{what}` again: {source}")),
            OpenError::Foreign(_) => Gone(format!(
                "`{name}` is another store now: put the former one back, or end all nodes, so that they begin anew with this one"
            )),
            other => Gone(other.to_string()),
        })?;
        tracing::info!(path = %name, "the store's file was opened again");
        Ok(seated)
    }
}

impl Seated {
    /// Closes it, now that the path names `files`.
    fn leave(self, files: &Files) {
        let Some(db) = &self.db else { return };
        if files.main != self.files.main {
            // SQLite looks itself whether the file was moved, and then neither folds the log into it nor deletes what is at the log's path.
            return;
        }
        if files.log.is_some() {
            // That log is somebody else's. Closing must not delete it.
            drop(db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true));
        } else {
            // The log was removed, and this connection has what was in it: the file gets it before the next log is begun.
            drop(db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())));
        }
    }
}

/// Something beside a refusal of SQLite's that says more than it does.
#[derive(Debug, thiserror::Error)]
#[error("{source}: {why}")]
struct Explained {
    why: String,
    source: crate::error::Cause,
}

fn failed(path: &Path, source: io::Error) -> OpenError {
    OpenError::Failed { what: path.display().to_string(), source: source.into() }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Makes the file if it is not there, with nothing in it, readable by its owner alone: SQLite's side files get the same mode.
fn make(path: &Path) -> Result<(), OpenError> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let _making = MAKING.lock();
    let log = beside(path, "-wal");
    if !path.exists() && log.exists() {
        let (name, log) = (path.display(), log.display());
        return Err(OpenError::Refused(format!(
            "`{name}` is not there, but its log is: nodes may still be using the file that was removed. End them, and put the file back; \
             or remove `{log}` too, to begin anew"
        )));
    }
    match options.open(path) {
        Ok(file) => drop(file),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(path, error)),
    }
    Ok(())
}

/// Whoever may use the store may lock it: the superuser who looks first must not make that his own.
#[cfg(unix)]
fn keep_owner(lock: &Path, path: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    if let (Ok(lock_is), Ok(is)) = (std::fs::metadata(lock), std::fs::metadata(path))
        && (lock_is.uid(), lock_is.gid()) != (is.uid(), is.gid())
    {
        // If it is not allowed it is not needed either: then both belong to whoever runs this.
        drop(std::os::unix::fs::chown(lock, Some(is.uid()), Some(is.gid())));
    }
}

#[cfg(not(unix))]
fn keep_owner(_: &Path, _: &Path) {}

/// The file holds the cluster's secret and every session, so only its owner may read it, whoever made it. By path: see above.
#[cfg(unix)]
fn keep_private(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::PermissionsExt as _;
    let real = std::fs::canonicalize(path).map_err(|source| failed(path, source))?;
    for file in [beside(&real, ""), beside(&real, "-wal"), beside(&real, "-shm")] {
        let mode = match std::fs::metadata(&file) {
            Ok(found) => found.permissions().mode(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&file, error)),
        };
        if mode & 0o077 == 0 {
            continue;
        }
        let (name, mode) = (file.display(), mode & 0o777);
        match std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)) {
            Ok(()) => tracing::warn!(
                path = %name,
                "others could read the store's file (mode {mode:03o}), with the cluster's secret in it: it is 600 now"
            ),
            Err(error) => {
                return Err(OpenError::Refused(format!(
                    "others can read `{name}` (mode {mode:03o}), with the cluster's secret in it, and this process cannot change that \
                     ({error}): run `chmod 600 {name}` as its owner"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn keep_private(_: &Path) -> Result<(), OpenError> {
    Ok(())
}

#[cfg(unix)]
fn inode(path: &Path) -> io::Result<Inode> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Where an open file can neither be deleted nor renamed, a path keeps its meaning.
#[cfg(not(unix))]
fn inode(path: &Path) -> io::Result<Inode> {
    std::fs::metadata(path).map(|_| (0, 0))
}

/// Whose it is, for people.
#[cfg(unix)]
fn access(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok()?;
    Some(format!("; it belongs to user {}, with mode {:03o}", found.uid(), found.mode() & 0o777))
}

#[cfg(not(unix))]
fn access(_: &Path) -> Option<String> {
    None
}
