//! Where the time of a fit goes.

use std::time::{Duration, Instant};

/// Time of all threads together, by what they did: on n threads it grows by n seconds a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Reading and decoding image files, or drawing synthetic cells.
    pub images: Duration,
    /// From the frame to the rectified image, and its augmentation.
    pub rectify: Duration,
    /// The backbone.
    pub network: Duration,
    /// Projection and interpolation.
    pub embed: Duration,
    /// The update of means and co-moments.
    pub update: Duration,
    /// Waiting for other threads at the end of a batch.
    pub wait: Duration,
}

impl Spent {
    /// Names and times.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, Duration); 6] {
        let Self { images, rectify, network, embed, update, wait } = *self;
        [
            ("images", images),
            ("rectify", rectify),
            ("network", network),
            ("embed", embed),
            ("update", update),
            ("wait", wait),
        ]
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.parts().iter().map(|(_, time)| *time).sum()
    }

    /// Adds another's.
    pub(super) fn add(&mut self, other: &Self) {
        self.images += other.images;
        self.rectify += other.rectify;
        self.network += other.network;
        self.embed += other.embed;
        self.update += other.update;
        self.wait += other.wait;
    }
}

/// Time since `clock`, and `clock` set to now.
pub(super) fn since(clock: &mut Instant) -> Duration {
    let now = Instant::now();
    let spent = now.duration_since(*clock);
    *clock = now;
    spent
}
