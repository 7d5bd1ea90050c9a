//! The folder by which `cellgate update` beside a running station tells it what to do: the station alone writes to its
//! slots.
//!
//! Who sends writes the file under another name and renames it, so that it is always whole. The answer lies beside it
//! under the same name with `.said` behind: `ok` or `no`, and a text.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder in the state folder.
const INBOX: &str = "inbox";
const SAID: &str = "said";

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Take this bundle (`.cgb`).
    Bundle(PathBuf),
    /// Trust the keys of this set (`.cgk`), which the present ones have signed.
    Keys(PathBuf),
    /// End the probation (`.confirm`).
    Confirm(PathBuf),
    /// Go back to the model before (`.rollback`).
    Rollback(PathBuf),
}

impl Errand {
    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        let (Self::Bundle(path) | Self::Keys(path) | Self::Confirm(path) | Self::Rollback(path)) = self;
        path
    }

    fn of(path: PathBuf) -> Option<Self> {
        match path.extension()?.to_str()? {
            "cgb" => Some(Self::Bundle(path)),
            "cgk" => Some(Self::Keys(path)),
            "confirm" => Some(Self::Confirm(path)),
            "rollback" => Some(Self::Rollback(path)),
            _ => None,
        }
    }
}

/// The folder by which a running station is told what to do.
#[derive(Clone, Debug)]
pub struct Inbox {
    folder: PathBuf,
}

impl Inbox {
    /// The inbox of a state folder.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join(INBOX) }
    }

    /// Sends a file's content, or nothing but its name; `name` must have one of the endings. Gives the errand's path.
    ///
    /// # Errors
    /// What the system said.
    pub fn send(&self, name: &str, content: &mut impl io::Read) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.folder)?;
        let (path, part) = (self.folder.join(name), self.folder.join(format!("{name}.part")));
        let _ = fs::remove_file(said(&path));
        let mut file = fs::File::create(&part)?;
        io::copy(content, &mut file)?;
        file.sync_all()?;
        fs::rename(&part, &path)?;
        Ok(path)
    }

    /// What was said to an errand, if something was: whether it was done, and a text. It is taken out.
    ///
    /// # Errors
    /// What the system said.
    pub fn answer(&self, errand: &Path) -> io::Result<Option<(bool, String)>> {
        let said = said(errand);
        match fs::read_to_string(&said) {
            Ok(text) => {
                fs::remove_file(&said)?;
                let (word, text) = text.split_once(' ').unwrap_or((&text, ""));
                Ok(Some((word == "ok", text.to_owned())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The errand that is next, by name.
    #[must_use]
    pub fn next(&self) -> Option<Errand> {
        let files = fs::read_dir(&self.folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        files.filter(|path| path.is_file()).filter_map(Errand::of).min_by(|a, b| a.path().cmp(b.path()))
    }

    /// An errand is done, or cannot be: it is taken out, and the answer put beside it.
    pub fn done(&self, errand: &Errand, is_ok: bool, text: &str) {
        let (path, word) = (errand.path(), if is_ok { "ok" } else { "no" });
        let said = said(path);
        let part = said.with_extension("part");
        let written = fs::write(&part, format!("{word} {text}")).and_then(|()| fs::rename(&part, &said));
        if let Err(error) = written.and_then(|()| fs::remove_file(path)) {
            log::error!("updates: clearing {}: {error}", path.display());
            // It must not be done again and again.
            let _ = fs::remove_file(path);
        }
    }
}

fn said(errand: &Path) -> PathBuf {
    let mut name = errand.as_os_str().to_owned();
    name.push(".");
    name.push(SAID);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errands_come_whole_in_order_and_are_answered_once() {
        let state = tempfile::tempdir().unwrap();
        let inbox = Inbox::new(state.path());
        assert_eq!(inbox.next(), None);
        let second = inbox.send("2.rollback", &mut io::empty()).unwrap();
        let first = inbox.send("1.cgb", &mut &b"bundle"[..]).unwrap();
        fs::write(state.path().join("inbox/0.cgb.part"), "half").unwrap();
        fs::write(state.path().join("inbox/0.txt"), "what").unwrap();
        let errand = inbox.next().unwrap();
        assert_eq!(errand, Errand::Bundle(first.clone()));
        assert_eq!(fs::read(errand.path()).unwrap(), b"bundle");
        assert_eq!(inbox.answer(&first).unwrap(), None);
        inbox.done(&errand, false, "it is too old");
        assert_eq!(inbox.next(), Some(Errand::Rollback(second)));
        assert_eq!(inbox.answer(&first).unwrap(), Some((false, "it is too old".into())));
        assert_eq!(inbox.answer(&first).unwrap(), None);
    }
}
