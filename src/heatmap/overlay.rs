//! Pictures of a heatmap over its cell: for reports, not on the frame path.

use image::{Rgb, RgbImage};

use super::Region;

/// Draws the rectified cell (`image`, side × side, normalised) in grey with the heatmap over it: transparent below
/// `low`, through yellow to red at `high` (the paper's Figure 7), and a box around each region.
///
///
/// # Panics
/// If `image` or `map` are not squares of their sides.
#[must_use]
pub fn draw(image: &[f32], side: usize, map: &[f32], grid: usize, range: (f32, f32), regions: &[Region]) -> RgbImage {
    assert_eq!((image.len(), map.len()), (side * side, grid * grid), "pictures that are not square");
    let mut picture = grey(image, side);
    let (low, high) = range;
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        let at = |v: u32| ((v as f32 + 0.5) * grid as f32 / side as f32 - 0.5).clamp(0.0, (grid - 1) as f32);
        let heat = ((bilinear(map, grid, at(y), at(x)) - low) / (high - low).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0);
        let colour = [255.0, 230.0 * (1.0 - heat), 0.0];
        let opacity = if heat > 0.0 { 0.25 + 0.45 * heat } else { 0.0 };
        for (channel, colour) in pixel.0.iter_mut().zip(colour) {
            *channel = (f32::from(*channel) * (1.0 - opacity) + colour * opacity) as u8;
        }
    }
    let to_pixels = |cells: u16| (usize::from(cells) * side / grid) as u32;
    for region in regions {
        let (left, top) = (to_pixels(region.left), to_pixels(region.top));
        let (right, bottom) = (to_pixels(region.right).max(left + 1) - 1, to_pixels(region.bottom).max(top + 1) - 1);
        let colour = Rgb([0, 220, 255]);
        for x in left..=right {
            picture.put_pixel(x, top, colour);
            picture.put_pixel(x, bottom, colour);
        }
        for y in top..=bottom {
            picture.put_pixel(left, y, colour);
            picture.put_pixel(right, y, colour);
        }
    }
    picture
}

/// The rectified cell alone, in grey.
///
/// # Panics
/// If `image` is not side².
#[must_use]
pub fn grey(image: &[f32], side: usize) -> RgbImage {
    assert_eq!(image.len(), side * side, "a picture that is not square");
    RgbImage::from_fn(side as u32, side as u32, |x, y| {
        let value = image[y as usize * side + x as usize] * crate::backbone::INPUT_STD + crate::backbone::INPUT_MEAN;
        Rgb([(value * 255.0).round().clamp(0.0, 255.0) as u8; 3])
    })
}

/// A picture as JPEG bytes, for pages with many of them; none only if memory for it is lacking.
#[must_use]
pub fn jpeg(picture: &RgbImage) -> Option<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 88);
    picture.write_with_encoder(encoder).ok()?;
    Some(bytes.into_inner())
}

fn bilinear(map: &[f32], grid: usize, y: f32, x: f32) -> f32 {
    let (y0, x0) = (y as usize, x as usize);
    let (y1, x1) = ((y0 + 1).min(grid - 1), (x0 + 1).min(grid - 1));
    let (fy, fx) = (y - y0 as f32, x - x0 as f32);
    let at = |y: usize, x: usize| map[y * grid + x];
    (1.0 - fy) * ((1.0 - fx) * at(y0, x0) + fx * at(y0, x1)) + fy * ((1.0 - fx) * at(y1, x0) + fx * at(y1, x1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_reddens_only_where_it_is_and_boxes_lie_on_the_region() {
        let image = vec![0.0; 64 * 64];
        let mut map = vec![0.0; 8 * 8];
        map[3 * 8 + 4] = 10.0;
        let region = Region { left: 4, top: 3, right: 5, bottom: 4, area: 1, peak: 10.0 };
        let picture = draw(&image, 64, &map, 8, (2.0, 10.0), &[region]);
        let cold = picture.get_pixel(2, 2);
        assert!(cold[0] == cold[1] && cold[1] == cold[2]);
        let hot = picture.get_pixel(36, 28);
        assert!(hot[0] > hot[1] && hot[1] >= hot[2]);
        assert_eq!(*picture.get_pixel(32, 24), Rgb([0, 220, 255]));
    }
}
