//! Flips and rotations of a rectified cell during the fit (paper section 2.2.1).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// How the images of a fit are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AugmentConfig {
    /// Changed copies of each cell, beside the cell itself; 0 switches augmentation off.
    pub copies: u32,
    /// Flip each copy left to right and top to bottom, each with probability ½.
    pub flips: bool,
    /// Turn each copy about its centre by an angle drawn evenly from ± this many degrees, 0 to 180.
    pub max_angle_degrees: f32,
    /// Turn each copy by 0, 90, 180 or 270 degrees as well, each as likely.
    pub quarter_turns: bool,
}

impl Default for AugmentConfig {
    /// No copies; flips and a turn of up to 2° for whoever asks for some.
    fn default() -> Self {
        Self { copies: 0, flips: true, max_angle_degrees: 2.0, quarter_turns: false }
    }
}

impl AugmentConfig {
    /// Checks every number's range.
    ///
    /// # Errors
    /// If the angle is not a number from 0 to 180, or there are more than 1,000 copies.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let range = |name, value: f32, high: f32| {
            if value >= 0.0 && value <= high { Ok(()) } else { Err(ConfigError::Range { name, value, low: 0.0, high }) }
        };
        range("augment.max_angle_degrees", self.max_angle_degrees, 180.0)?;
        range("augment.copies", self.copies as f32, 1000.0)
    }

    /// Images that one cell becomes: itself and its copies.
    #[must_use]
    pub fn images_per_cell(&self) -> u32 {
        self.copies + 1
    }

    /// The change that makes copy `copy` of cell `cell`; copy 0 is the cell itself, unchanged.
    ///
    /// It depends on the three numbers and on nothing else, so shards of a fit, a resumed fit and any number of
    /// threads draw the same.
    #[must_use]
    pub fn draw(&self, seed: u64, cell: u64, copy: u32) -> Augmentation {
        if copy == 0 {
            return Augmentation::default();
        }
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&cell.to_le_bytes());
        key[16..20].copy_from_slice(&copy.to_le_bytes());
        key[24..].copy_from_slice(b"augment1");
        let mut rng = ChaCha8Rng::from_seed(key);
        // Everything is drawn whatever is switched on, so that one switch does not change what another draws.
        let (bits, angle) = (rng.next_u32(), rng.next_u32());
        let unit = (f64::from(angle) + 0.5) / 2f64.powi(31) - 1.0;
        Augmentation {
            flip_h: self.flips && bits & 1 != 0,
            flip_v: self.flips && bits & 2 != 0,
            quarters: if self.quarter_turns { (bits >> 2 & 3) as u8 } else { 0 },
            angle_degrees: (unit * f64::from(self.max_angle_degrees)) as f32,
        }
    }
}

/// One change of an image: flips, then the turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Augmentation {
    /// Left and right change places.
    pub flip_h: bool,
    /// Top and bottom change places.
    pub flip_v: bool,
    /// Quarter turns clockwise, 0 to 3.
    pub quarters: u8,
    /// Further turn clockwise about the centre, in degrees.
    pub angle_degrees: f32,
}

impl Augmentation {
    /// Whether the image stays as it is.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        *self == Self::default()
    }

    /// Writes the changed `from` to `to`, both `size²` values row by row. Allocates nothing.
    ///
    /// Flips and quarter turns move pixels without arithmetic. Other angles are sampled bilinearly; what would come
    /// from outside the image is mirrored at its edge, which continues the cell's texture, where repeating the last
    /// pixel would draw streaks that no good cell has.
    ///
    /// # Panics
    /// If a buffer is not `size²` long or `size` is 0.
    pub fn apply(&self, from: &[f32], to: &mut [f32], size: usize) {
        assert!(
            size > 0 && from.len() == size * size && to.len() == size * size,
            "an image of {size}×{size} is needed"
        );
        // The source coordinates are x' = cx + a·(x − cx) + b·(y − cx), y' = cx + c·(x − cx) + d·(y − cx): the turn
        // undone first, then the flips.
        let (sin, cos) = match self.quarters % 4 {
            0 => (0.0, 1.0),
            1 => (1.0, 0.0),
            2 => (0.0, -1.0),
            _ => (-1.0, 0.0),
        };
        let (s, c) =
            if self.angle_degrees == 0.0 { (0.0, 1.0) } else { f64::from(self.angle_degrees).to_radians().sin_cos() };
        let (sin, cos) = (sin * c + cos * s, cos * c - sin * s);
        let (fh, fv) = (if self.flip_h { -1.0 } else { 1.0 }, if self.flip_v { -1.0 } else { 1.0 });
        let [a, b, c, d] = [fh * cos, fh * sin, -fv * sin, fv * cos].map(|v| v as f32);
        let centre = (size as f32 - 1.0) / 2.0;
        let exact = self.angle_degrees == 0.0;
        for (y, row) in to.chunks_exact_mut(size).enumerate() {
            let dy = y as f32 - centre;
            for (x, value) in row.iter_mut().enumerate() {
                let dx = x as f32 - centre;
                let (sx, sy) = (centre + a * dx + b * dy, centre + c * dx + d * dy);
                *value = if exact {
                    from[(sy + 0.5) as usize * size + (sx + 0.5) as usize]
                } else {
                    sample(from, size, mirror(sx, size), mirror(sy, size))
                };
            }
        }
    }
}

/// Mirrors a coordinate at the outer edges of the first and last pixel, then keeps it between their centres.
fn mirror(x: f32, size: usize) -> f32 {
    let side = size as f32;
    let x = if x < -0.5 { -1.0 - x } else { x };
    let x = if x > side - 0.5 { 2.0 * side - 1.0 - x } else { x };
    x.clamp(0.0, side - 1.0)
}

fn sample(image: &[f32], size: usize, x: f32, y: f32) -> f32 {
    let (ix, iy) = (x as usize, y as usize);
    let (jx, jy) = ((ix + 1).min(size - 1), (iy + 1).min(size - 1));
    let (tx, ty) = (x - ix as f32, y - iy as f32);
    let line = |row: usize| {
        let (a, b) = (image[row * size + ix], image[row * size + jx]);
        a + tx * (b - a)
    };
    let (top, bottom) = (line(iy), line(jy));
    top + ty * (bottom - top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(size: usize) -> Vec<f32> {
        (0..size * size).map(|i| (i * 37 % 101) as f32).collect()
    }

    fn change(a: Augmentation, from: &[f32], size: usize) -> Vec<f32> {
        let mut to = vec![0.0; size * size];
        a.apply(from, &mut to, size);
        to
    }

    #[test]
    fn copy_zero_is_the_cell_and_draws_depend_on_their_numbers_alone() {
        let config = AugmentConfig { copies: 5, flips: true, max_angle_degrees: 10.0, quarter_turns: true };
        assert!(config.draw(1, 2, 0).is_identity());
        assert_eq!(config.draw(1, 2, 3), config.draw(1, 2, 3));
        assert_ne!(config.draw(1, 2, 3), config.draw(1, 3, 2));
        // Pinned: a fit made by one version is repeated by another.
        let pinned = Augmentation { flip_h: false, flip_v: true, quarters: 1, angle_degrees: -5.760_851_4 };
        assert_eq!(config.draw(7, 11, 1), pinned);
    }

    #[test]
    fn draws_are_even_and_keep_their_ranges() {
        let config = AugmentConfig { copies: 1, flips: true, max_angle_degrees: 30.0, quarter_turns: true };
        let draws: Vec<_> = (0..4000).map(|cell| config.draw(3, cell, 1)).collect();
        let share = |f: &dyn Fn(&Augmentation) -> bool| draws.iter().filter(|d| f(d)).count() as f64 / 4000.0;
        assert!((share(&|d| d.flip_h) - 0.5).abs() < 0.04);
        assert!((share(&|d| d.flip_v) - 0.5).abs() < 0.04);
        assert!((share(&|d| d.flip_v && d.flip_h) - 0.25).abs() < 0.04);
        assert!((0..4).all(|q| (share(&|d| d.quarters == q) - 0.25).abs() < 0.04));
        assert!(draws.iter().all(|d| d.angle_degrees.abs() <= 30.0));
        assert!((share(&|d| d.angle_degrees > 15.0) - 0.25).abs() < 0.04);
        let plain = AugmentConfig { flips: false, max_angle_degrees: 0.0, quarter_turns: false, ..config };
        assert!((0..100).all(|cell| plain.draw(3, cell, 1).is_identity()));
    }

    #[test]
    fn flips_and_quarter_turns_are_exact() {
        for size in [1, 4, 5, 256] {
            let from = picture(size);
            let h = Augmentation { flip_h: true, ..Default::default() };
            let v = Augmentation { flip_v: true, ..Default::default() };
            let q = |quarters| Augmentation { quarters, ..Default::default() };
            assert_eq!(change(Augmentation::default(), &from, size), from);
            assert_eq!(change(h, &change(h, &from, size), size), from);
            assert_eq!(change(h, &change(v, &from, size), size), change(q(2), &from, size));
            let turned = change(q(1), &from, size);
            // Clockwise: the top left comes to the top right.
            assert_eq!(turned[size - 1], from[0]);
            assert_eq!(change(q(3), &turned, size), from);
            assert_eq!(change(h, &from, size)[0], from[size - 1]);
            assert_eq!(change(v, &from, size)[0], from[(size - 1) * size]);
        }
    }

    #[test]
    fn a_turn_moves_a_point_clockwise_about_the_centre() {
        let size = 65;
        let mut from = vec![0.0; size * size];
        from[32 * size + 52] = 1.0; // 20 to the right of the centre
        let to = change(Augmentation { angle_degrees: 30.0, ..Default::default() }, &from, size);
        let sum: f32 = to.iter().sum();
        let x = to.iter().enumerate().map(|(i, v)| (i % size) as f32 * v).sum::<f32>() / sum - 32.0;
        let y = to.iter().enumerate().map(|(i, v)| (i / size) as f32 * v).sum::<f32>() / sum - 32.0;
        assert!((x - 17.32).abs() < 0.3 && (y - 10.0).abs() < 0.3, "{x} {y}");
    }

    #[test]
    fn a_turn_there_and_back_keeps_a_smooth_picture() {
        let size = 128;
        let from: Vec<f32> =
            (0..size * size).map(|i| ((i % size) as f32 / 9.0).sin() + ((i / size) as f32 / 7.0).cos()).collect();
        let turn = |angle_degrees| Augmentation { angle_degrees, ..Default::default() };
        let back = change(turn(-12.5), &change(turn(12.5), &from, size), size);
        for y in 32..96 {
            for x in 32..96 {
                assert!((back[y * size + x] - from[y * size + x]).abs() < 0.02);
            }
        }
    }

    #[test]
    fn any_angle_stays_within_the_picture_and_its_values() {
        for size in [1, 2, 3, 64] {
            let from = picture(size);
            for angle in [-180.0, -90.0, -45.0, 0.001, 45.0, 133.7, 180.0] {
                let a = Augmentation { angle_degrees: angle, flip_h: true, quarters: 3, ..Default::default() };
                assert!(change(a, &from, size).iter().all(|v| (0.0..=100.0).contains(v)));
            }
        }
    }
}
