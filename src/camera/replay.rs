//! A folder of images, played as if a camera took them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::pace::Pace;
use super::{Camera, CameraError, Format, Shot};
use crate::frame::{DecodeError, DecodeLimits, Frame, decode_file_into};

/// Names of files that are taken for images end in one of these.
const ENDINGS: [&str; 9] = ["png", "tif", "tiff", "jpg", "jpeg", "pgm", "ppm", "pnm", "pbm"];

/// Plays the images of a folder in order of their names.
///
/// All have the format of the first one that can be read. One that cannot be read, or is of another size or depth, is a
/// damaged frame. Decoding allocates, which a real camera's frames do not.
#[derive(Debug)]
pub struct Replay {
    folder: PathBuf,
    files: Vec<PathBuf>,
    format: Format,
    /// The next of `files`.
    next: usize,
    /// What was decoded while it was not yet due, and how that went.
    ready: Option<Result<(), &'static str>>,
    frame: Frame,
    pace: Pace,
    repeat: bool,
    sequence: u32,
}

impl Replay {
    /// The images in `folder`, one a `period` (zero: as fast as asked), once or for ever.
    ///
    /// # Errors
    /// [`CameraError::Refused`] if the folder cannot be read or holds no image that can.
    pub fn new(folder: &Path, period: Duration, repeat: bool) -> Result<Self, CameraError> {
        let refused = |why: String| CameraError::Refused(format!("replaying the folder {}: {why}", folder.display()));
        let is_image = |path: &PathBuf| {
            let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            ENDINGS.iter().any(|known| known.eq_ignore_ascii_case(ending))
        };
        let entries = std::fs::read_dir(folder).map_err(|e| refused(format!("it cannot be read ({e})")))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(is_image).collect();
        files.sort();
        if files.is_empty() {
            return Err(refused(format!("it holds no image ({})", ENDINGS.join(", "))));
        }
        let limits = DecodeLimits::default();
        let mut why = None;
        let first = files.iter().find_map(|file| match Frame::decode_file(file, &limits) {
            Ok(frame) => Some(frame),
            Err(error) => {
                why.get_or_insert(error);
                None
            }
        });
        let Some(frame) = first else {
            return Err(refused(why.map_or_else(String::new, |e| format!("none of its images can be read: {e}"))));
        };
        let format = Format::of(&frame);
        let folder = folder.to_owned();
        let pace = Pace::new(period);
        Ok(Self { folder, files, format, next: 0, ready: None, frame, pace, repeat, sequence: 0 })
    }

    /// Images in the folder, readable or not.
    #[must_use]
    pub fn images(&self) -> usize {
        self.files.len()
    }

    fn decode(&mut self) -> Result<(), &'static str> {
        let file = &self.files[self.next];
        decode_file_into(file, &DecodeLimits::default(), &mut self.frame).map_err(|error| {
            log::warn!("{error}");
            match error {
                DecodeError::Io { .. } => "its file cannot be read",
                _ => "its file is no image that can be decoded",
            }
        })?;
        let found = Format::of(&self.frame);
        if found != self.format {
            log::warn!("{} is {found}, the replay's first image is {}", file.display(), self.format);
            return Err("its file has another size or depth than the first one");
        }
        Ok(())
    }
}

impl Camera for Replay {
    fn format(&self) -> Format {
        self.format
    }

    fn next(&mut self, shot: &mut Shot, patience: Duration) -> Result<(), CameraError> {
        if self.next == self.files.len() {
            if !self.repeat {
                return Err(CameraError::End);
            }
            self.next = 0;
        }
        // Before it is due, so that its stamp lies where an exposure would end.
        let ready = match self.ready.take() {
            Some(ready) => ready,
            None => self.decode(),
        };
        let Some(taken) = self.pace.wait(patience) else {
            self.ready = Some(ready);
            return Err(CameraError::Nothing(patience));
        };
        self.next += 1;
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        (shot.sequence, shot.taken) = (sequence, taken);
        match ready {
            Ok(()) => {
                std::mem::swap(&mut shot.frame, &mut self.frame);
                Ok(())
            }
            Err(why) => {
                shot.fit(self.format);
                Err(CameraError::Damaged { sequence, taken, why })
            }
        }
    }

    fn furnish(&mut self, make: &dyn Fn() -> Frame) {
        let (mut frame, read) = (make(), &self.frame);
        if Format::of(&frame) == Format::of(read) {
            frame.pixels_mut().copy_from_slice(read.pixels());
        }
        self.frame = frame;
    }

    fn on_demand(&self) -> bool {
        self.pace.on_demand()
    }

    fn describe(&self) -> String {
        let Format { width, height, white } = self.format;
        format!("replay of {} ({} images), {width}×{height}, white {white}", self.folder.display(), self.files.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let save = |name: &str, level: u16| {
            Frame::from_pixels(20, 16, 255, vec![level; 320]).save_png(folder.path().join(name)).unwrap();
        };
        save("c.png", 30);
        save("a.png", 10);
        std::fs::write(folder.path().join("b.png"), b"no image").unwrap();
        Frame::new(21, 16, 255).save_png(folder.path().join("d.png")).unwrap();
        save("e.PNG", 50);
        std::fs::write(folder.path().join("labels.csv"), b"a.png,A").unwrap();
        folder
    }

    #[test]
    fn images_come_in_order_and_broken_ones_are_damaged_frames() {
        let folder = folder();
        let mut camera = Replay::new(folder.path(), Duration::ZERO, true).unwrap();
        assert_eq!((camera.images(), camera.format()), (5, Format { width: 20, height: 16, white: 255 }));
        let mut shot = Shot::new(1, 1, 255);
        let mut last = Moment::default();
        for sequence in 0..15_u32 {
            match (sequence % 5, camera.next(&mut shot, Duration::ZERO)) {
                (good @ (0 | 2 | 4), Ok(())) => {
                    assert_eq!(shot.frame.pixels(), [10 + 10 * good as u16; 320]);
                    assert_eq!(shot.sequence, sequence);
                }
                (1 | 3, Err(CameraError::Damaged { sequence: told, .. })) => assert_eq!(told, sequence),
                (_, other) => panic!("{sequence}: {other:?}"),
            }
            assert!(shot.taken >= last);
            last = shot.taken;
        }
    }

    #[test]
    fn it_ends_once_or_waits_for_the_takt() {
        let folder = folder();
        let mut camera = Replay::new(folder.path(), Duration::from_secs(3600), false).unwrap();
        let mut shot = Shot::new(20, 16, 255);
        camera.next(&mut shot, Duration::ZERO).unwrap();
        for _ in 0..3 {
            assert!(matches!(camera.next(&mut shot, Duration::ZERO), Err(CameraError::Nothing(_))));
        }
        let mut camera = Replay::new(folder.path(), Duration::ZERO, false).unwrap();
        for _ in 0..5 {
            let _ = camera.next(&mut shot, Duration::ZERO);
        }
        for _ in 0..2 {
            assert!(matches!(camera.next(&mut shot, Duration::ZERO), Err(CameraError::End)));
        }
    }

    #[test]
    fn a_folder_without_a_readable_image_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| Replay::new(path, Duration::ZERO, true).unwrap_err().to_string();
        assert!(refused(folder.path()).contains("holds no image"));
        assert!(refused(&folder.path().join("none")).contains("cannot be read"));
        std::fs::write(folder.path().join("x.png"), b"no image").unwrap();
        assert!(refused(folder.path()).contains("x.png"));
    }
}
