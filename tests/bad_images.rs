//! Image files of every format and depth come in as what they show; damaged, lying and oversized ones are refused with
//! an error that names the file, what was found and what to do.

use std::io::Cursor;
use std::path::Path;

use cellgate::frame::{DecodeError, DecodeLimits, Frame, decode_file_into, decode_into};
use image::{DynamicImage, ImageFormat};
use proptest::prelude::*;

const FORMATS: [ImageFormat; 4] = [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Jpeg, ImageFormat::Pnm];

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

fn decode(bytes: &[u8]) -> Result<Frame, DecodeError> {
    let mut frame = Frame::new(0, 0, 1);
    decode_into(bytes, "cell.img", &DecodeLimits::default(), &mut frame).map(|()| frame)
}

fn grey(w: u32, h: u32) -> DynamicImage {
    image::GrayImage::from_fn(w, h, |x, y| image::Luma([((x * 5 + y * 3) % 256) as u8])).into()
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |c, b| (0..8).fold(c ^ u32::from(*b), |c, _| (c >> 1) ^ (0xedb8_8320 * (c & 1))))
}

/// A PNG of a small picture whose header claims another size, checksum and all.
fn lying_png(width: u32, height: u32) -> Vec<u8> {
    let mut png = encode(&grey(8, 8), ImageFormat::Png);
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    png
}

#[test]
fn every_format_and_depth_is_read() {
    for format in FORMATS {
        let frame = decode(&encode(&grey(40, 30), format)).unwrap();
        assert_eq!((frame.width(), frame.height(), frame.white()), (40, 30, 255), "{format:?}");
        if format != ImageFormat::Jpeg {
            assert!((0..1200).all(|i| usize::from(frame.pixels()[i]) == (i % 40 * 5 + i / 40 * 3) % 256), "{format:?}");
        }
    }
    let deep = image::ImageBuffer::from_fn(40, 30, |x, y| image::Luma([(x * 1000 + y * 7) as u16]));
    for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Pnm] {
        let frame = decode(&encode(&deep.clone().into(), format)).unwrap();
        assert_eq!(frame.white(), 65535, "{format:?}");
        assert!((0..1200).all(|i| usize::from(frame.pixels()[i]) == i % 40 * 1000 + i / 40 * 7), "{format:?}");
    }
}

#[test]
fn colour_becomes_luma_and_grey_in_colour_is_exact() {
    let image = grey(256, 4);
    let plain = decode(&encode(&image, ImageFormat::Png)).unwrap();
    for colour in [image.to_rgb8().into(), image.to_rgba8().into(), image.to_luma_alpha8().into()] {
        let colour: DynamicImage = colour;
        assert_eq!(decode(&encode(&colour, ImageFormat::Png)).unwrap(), plain);
    }
    let deep: DynamicImage = image::ImageBuffer::from_fn(256, 256, |x, y| image::Rgb([(x * 256 + y) as u16; 3])).into();
    let frame = decode(&encode(&deep, ImageFormat::Png)).unwrap();
    assert!((0..65536).all(|i| usize::from(frame.pixels()[i]) == i % 256 * 256 + i / 256));
    let red: DynamicImage = image::RgbImage::from_pixel(2, 2, image::Rgb([255, 0, 0])).into();
    assert_eq!(decode(&encode(&red, ImageFormat::Png)).unwrap().pixels(), [76; 4]);
}

#[test]
fn a_pnm_of_twelve_bits_keeps_its_shares_of_full_scale() {
    let mut pgm = b"P5\n3 1\n4095\n".to_vec();
    for value in [0u16, 803, 4095] {
        pgm.extend(value.to_be_bytes());
    }
    let frame = decode(&pgm).unwrap();
    assert_eq!(frame.white(), 65535);
    let share = |i: usize| f64::from(frame.pixels()[i]) / 65535.0;
    assert_eq!((share(0), share(2)), (0.0, 1.0));
    assert!((share(1) - 803.0 / 4095.0).abs() < 1e-5);
    let low = decode(b"P2\n2 1\n100\n50 100\n").unwrap();
    assert_eq!((low.white(), low.pixels()), (255, [128, 255].as_slice()));
}

#[test]
fn files_cut_off_anywhere_are_refused() {
    for format in FORMATS {
        let whole = encode(&grey(120, 90), format);
        for share in [0, 1, 5, 20, 50, 80, 95, 99] {
            let cut = whole.len() * share / 100;
            let error = decode(&whole[..cut]).expect_err(&format!("{format:?} cut to {share} %"));
            assert!(error.to_string().contains("cell.img"), "{error}");
        }
        // One byte short: the PNG's end chunk may lack its checksum, all others must notice.
        if format != ImageFormat::Png {
            assert!(decode(&whole[..whole.len() - 1]).is_err(), "{format:?} cut by one byte");
        }
    }
}

#[test]
fn a_header_that_promises_too_much_for_the_file_is_refused_before_memory_is_taken() {
    let error = decode(&lying_png(8000, 7000)).unwrap_err();
    assert!(matches!(error, DecodeError::Lying { width: 8000, height: 7000, .. }), "{error:?}");
    assert!(error.to_string().contains("8000×7000") && error.to_string().contains("truncated"), "{error}");
    assert!(decode(&lying_png(8, 9)).is_err());
    assert!(decode(&lying_png(100, 100)).is_err());
    assert!(decode(&lying_png(0, 8)).is_err());
    assert!(matches!(decode(b"P5\n9000 7000\n255\nshort").unwrap_err(), DecodeError::Lying { .. }));
}

#[test]
fn twenty_thousand_pixels_a_side_are_over_the_limit() {
    for bytes in [lying_png(20_000, 20_000), b"P5 20000 20000 255\n".to_vec()] {
        let error = decode(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::TooLarge { width: 20_000, height: 20_000, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("cell.img") && text.contains("20000×20000") && text.contains("16384"), "{text}");
    }
    // Each side is allowed, the product is not.
    assert!(matches!(decode(&lying_png(16_000, 16_000)).unwrap_err(), DecodeError::TooLarge { .. }));
    let tight = DecodeLimits { max_side: 39, ..DecodeLimits::default() };
    let error = decode_into(&encode(&grey(40, 30), ImageFormat::Jpeg), "x", &tight, &mut Frame::new(0, 0, 1));
    assert!(matches!(error.unwrap_err(), DecodeError::TooLarge { .. }));
}

#[test]
fn one_pixel_is_a_picture() {
    for format in FORMATS {
        let frame = decode(&encode(&grey(1, 1), format)).unwrap();
        assert_eq!((frame.width(), frame.height()), (1, 1));
    }
}

#[test]
fn what_is_no_picture_is_said_so() {
    for bytes in [b"".as_slice(), b"hello, world", b"GIF89a and more", &[0; 100]] {
        let error = decode(bytes).unwrap_err();
        assert!(matches!(error, DecodeError::Format { .. } | DecodeError::PixelType { .. }), "{error:?}");
        assert!(error.to_string().contains("cell.img"));
    }
    let float: DynamicImage = image::Rgb32FImage::new(4, 4).into();
    let error = decode(&encode(&float, ImageFormat::Tiff)).unwrap_err();
    assert!(matches!(error, DecodeError::PixelType { .. }), "{error:?}");
}

#[test]
fn a_flipped_bit_in_a_png_is_noticed() {
    let png = encode(&grey(60, 50), ImageFormat::Png);
    for at in (33..png.len() - 20).step_by(17) {
        let mut bad = png.clone();
        bad[at] ^= 0x10;
        assert!(decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn files_are_read_into_the_same_buffer_and_told_by_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("named.jpg");
    std::fs::write(&path, encode(&grey(50, 40), ImageFormat::Png)).unwrap();
    let mut frame = Frame::new(100, 100, 255);
    let before = frame.pixels().as_ptr();
    decode_file_into(&path, &DecodeLimits::default(), &mut frame).unwrap();
    assert_eq!((frame.width(), frame.pixels().as_ptr()), (50, before));
    let missing = Frame::decode_file(dir.path().join("missing.png"), &DecodeLimits::default()).unwrap_err();
    assert!(missing.to_string().contains("missing.png"), "{missing}");
    let small = DecodeLimits { max_file: 10, ..DecodeLimits::default() };
    assert!(matches!(Frame::decode_file(&path, &small).unwrap_err(), DecodeError::FileTooLarge { limit: 10, .. }));
}

#[test]
fn saved_frames_come_back_and_failed_saves_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (white, back) in [(255u16, 255u16), (100, 255), (4095, 65535), (65535, 65535)] {
        let pixels = (0..600u32).map(|i| (i * u32::from(white) / 599) as u16).collect();
        let frame = Frame::from_pixels(30, 20, white, pixels);
        let path = dir.path().join(format!("{white}.png"));
        frame.save_png(&path).unwrap();
        let read = Frame::decode_file(&path, &DecodeLimits::default()).unwrap();
        assert_eq!(read.white(), back);
        let half = 0.51 / f64::from(back);
        assert!(
            frame
                .pixels()
                .iter()
                .zip(read.pixels())
                .all(|(&a, &b)| { (f64::from(a) / f64::from(white) - f64::from(b) / f64::from(back)).abs() <= half })
        );
        if white == back {
            assert_eq!(frame, read);
        }
    }
    let nowhere = dir.path().join("no/such/folder/x.png");
    let error = Frame::new(4, 4, 255).save_png(&nowhere).unwrap_err();
    assert!(error.to_string().contains("x.png"), "{error}");
    assert!(!Path::new(&nowhere).exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
    assert!(Frame::new(0, 0, 255).save_png(dir.path().join("empty.png")).is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode(&bytes);
        for start in [b"\x89PNG\r\n\x1a\n".as_slice(), b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"\xff\xd8\xff\xe0", b"P5 ", b"P7\n", b"P4 "] {
            let _ = decode(&[start, &bytes].concat());
        }
    }

    #[test]
    fn damaged_files_never_panic(
        format in prop::sample::select(FORMATS.to_vec()),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = encode(&grey(32, 24), format);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // A picture or an error; a picture's size is within the limits.
        if let Ok(frame) = decode(&bytes) {
            prop_assert_eq!(frame.pixels().len(), frame.width() * frame.height());
        }
    }
}
