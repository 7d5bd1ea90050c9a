//! A bar code in the dark margin above the cell: which cell is this?

use crate::frame::Frame;

/// Two guard bars, 32 bits and 4 check bits, two guard bars.
const MODULES: usize = 40;
/// Brightness of a lit module as a share of full scale: under the threshold of 50 of 255 that finds the cell.
const LIT: f32 = 40.0 / 255.0;
/// Least difference between the guards' lit and dark modules.
const CONTRAST: f32 = 12.0 / 255.0;

/// Where the strip lies in a frame of this width: module width, first column, first row, end row.
fn place(width: usize) -> (usize, usize, usize, usize) {
    let module = (width * 6 / 10 / MODULES).max(1);
    (module, (width.saturating_sub(module * MODULES)) / 2, width / 90, (width / 36).max(width / 90 + 1))
}

fn code(id: u32) -> u64 {
    let check = (0..8).fold(0, |sum, i| sum ^ ((id >> (4 * i)) & 15)) ^ 0b1010;
    (0b10 << 38) | (u64::from(id) << 6) | (u64::from(check) << 2) | 0b01
}

/// Draws the strip for `id` into the margin above the cell.
///
/// Lit bars stay below 50 of 255, so that the strip is background to whoever looks for the cell. A frame less than 64
/// pixels wide or high is left alone.
pub fn draw_id(frame: &mut Frame, id: u32) {
    let (width, height, white) = (frame.width(), frame.height(), f32::from(frame.white()));
    if width < 64 || height < 64 {
        return;
    }
    let (module, left, top, foot) = place(width);
    let (bits, lit) = (code(id), (LIT * white + 0.5) as u16);
    for y in top..foot.min(height) {
        let row = &mut frame.pixels_mut()[y * width..][..width];
        for i in (0..MODULES).filter(|i| bits >> (MODULES - 1 - i) & 1 == 1) {
            row[left + i * module..][..module].fill(lit);
        }
    }
}

/// The id in the strip of a frame that [`draw_id`] wrote to; `None` where there is no strip or its check bits don't
/// hold.
#[must_use]
pub fn read_id(frame: &Frame) -> Option<u32> {
    let (width, white) = (frame.width(), f32::from(frame.white()));
    if width < 64 || frame.height() < 64 {
        return None;
    }
    let (module, left, top, foot) = place(width);
    let foot = foot.min(frame.height());
    let mut levels = [0.0_f32; MODULES];
    for (i, level) in levels.iter_mut().enumerate() {
        let (x0, trim) = (left + i * module, module / 4);
        let mut sum = 0_u64;
        for y in top..foot {
            sum += frame.row(y)[x0 + trim..x0 + module - trim].iter().map(|&p| u64::from(p)).sum::<u64>();
        }
        *level = sum as f32 / ((foot - top) * (module - 2 * trim)) as f32 / white;
    }
    let [lit, dark] = [[levels[0], levels[MODULES - 1]], [levels[1], levels[MODULES - 2]]];
    let (weakest, strongest) = (lit[0].min(lit[1]), dark[0].max(dark[1]));
    if weakest - strongest < CONTRAST {
        return None;
    }
    let middle = (weakest + strongest) / 2.0;
    let bits = levels.iter().fold(0_u64, |bits, &level| bits << 1 | u64::from(level > middle));
    let id = (bits >> 6) as u32;
    (code(id) == bits).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_at_every_size_and_depth() {
        for (size, white) in [(64, 255), (100, 255), (720, 255), (720, 4095), (1500, 65535)] {
            for id in [0, 1, 0xFFFF_FFFF, 0x8000_0001, 123_456_789] {
                let mut frame = Frame::new(size, size, white);
                draw_id(&mut frame, id);
                assert_eq!(read_id(&frame), Some(id), "{size} {white}");
            }
        }
    }

    #[test]
    fn no_strip_or_a_spoilt_one_is_no_id() {
        assert_eq!(read_id(&Frame::new(720, 720, 255)), None);
        assert_eq!(read_id(&Frame::new(1, 1, 255)), None);
        assert_eq!(read_id(&Frame::from_pixels(720, 720, 255, vec![255; 720 * 720])), None);
        let mut frame = Frame::new(720, 720, 255);
        draw_id(&mut frame, 7);
        let (module, left, top, foot) = place(720);
        for y in top..foot {
            frame.pixels_mut()[y * 720 + left + 10 * module..][..module].fill(40);
        }
        assert_eq!(read_id(&frame), None, "one flipped bit must not pass");
    }
}
