//! Linux' framebuffer device, `/dev/fb0`: asked for its geometry by ioctl, written through a mapping.
//!
//! It is the one interface that HDMI panels, SPI displays and the small OLEDs share, and needs no library. Pixels of 16,
//! 24 and 32 bits with any order of colours are written, and the single bits of `ssd1307fb`.

use embedded_graphics::pixelcolor::Rgb565;
use embedded_graphics::prelude::*;

use super::{Canvas, DisplayError, Rotate};

/// Longest side that is believed.
const LONGEST: u32 = 16_384;

/// Where in a pixel a colour lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// Bits to the right of it.
    pub offset: u32,
    /// Its bits, 1 to 8.
    pub length: u32,
}

/// How a framebuffer lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Visible pixels in a row.
    pub width: u32,
    /// Visible rows.
    pub height: u32,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Bytes before the first visible pixel.
    pub start: usize,
    /// Bits of a pixel: 1, 16, 24 or 32. Single bits lie with the leftmost pixel lowest in its byte.
    pub bits: u32,
    /// Whether a single bit that is set is dark.
    pub set_is_dark: bool,
    /// Red, green, blue.
    pub colours: [Field; 3],
}

impl Geometry {
    /// Whether all visible pixels lie in so many bytes and are of a kind that is known.
    ///
    /// # Errors
    /// What is not so.
    pub fn validate(&self, bytes: usize) -> Result<(), &'static str> {
        if !(1..=LONGEST).contains(&self.width) || !(1..=LONGEST).contains(&self.height) {
            return Err("its sides are not from 1 to 16384 pixels");
        }
        if ![1, 16, 24, 32].contains(&self.bits) {
            return Err("its pixels have neither 16, 24 or 32 bits nor one: set another mode (fbset -depth 32)");
        }
        let row = (self.width as usize * self.bits as usize).div_ceil(8);
        let end = self.stride.checked_mul(self.height as usize - 1).and_then(|rows| rows.checked_add(row));
        let end = end.and_then(|end| end.checked_add(self.start));
        if self.stride < row || end.is_none_or(|end| end > bytes) {
            return Err("its rows do not lie in its memory");
        }
        let fits = |field: &Field| (1..=8).contains(&field.length) && field.offset <= self.bits - field.length;
        if self.bits > 1 && !self.colours.iter().all(fits) {
            return Err("its colours do not lie in its pixels");
        }
        Ok(())
    }

    fn pixel(&self, colour: Rgb565) -> u32 {
        let channels = [u32::from(colour.r()) << 3, u32::from(colour.g()) << 2, u32::from(colour.b()) << 3];
        // The low bits repeat the high ones, so that white is white.
        let full = [channels[0] | channels[0] >> 5, channels[1] | channels[1] >> 6, channels[2] | channels[2] >> 5];
        full.iter()
            .zip(self.colours)
            .fold(0, |pixel, (value, field)| pixel | ((value >> (8 - field.length)) << field.offset))
    }

    fn is_bright(colour: Rgb565) -> bool {
        // Weights of luma, of full scales 31, 63 and 31.
        let luma = 299 * 2 * u32::from(colour.r()) + 587 * u32::from(colour.g()) + 114 * 2 * u32::from(colour.b());
        luma > 63 * 1000 / 2
    }
}

/// Memory that a screen shows.
pub trait Device: Send {
    /// How it is laid out; stays the same.
    fn geometry(&self) -> Geometry;
    /// All of it.
    fn memory(&mut self) -> &mut [u8];
}

/// A device on which pictures are shown.
pub struct Framebuffer<D> {
    device: D,
    geometry: Geometry,
    rotate: Rotate,
    row: Vec<u8>,
}

impl<D: Device> Framebuffer<D> {
    /// Shows on `device`, whose name is for errors.
    ///
    /// # Errors
    /// If its geometry makes no sense or is not supported.
    pub fn new(mut device: D, name: &str, rotate: Rotate) -> Result<Self, DisplayError> {
        let geometry = device.geometry();
        geometry.validate(device.memory().len()).map_err(|why| DisplayError::Geometry {
            device: name.into(),
            geometry,
            why,
        })?;
        let row = vec![0; (geometry.width as usize * geometry.bits as usize).div_ceil(8)];
        Ok(Self { device, geometry, rotate, row })
    }

    /// Size of the pictures that it shows, width and height.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        self.rotate.of(self.geometry.width, self.geometry.height)
    }

    /// Shows a picture.
    ///
    /// # Panics
    /// If it is not of [`Framebuffer::size`].
    pub fn show(&mut self, canvas: &Canvas<Rgb565>) {
        let (wide, high) = self.size();
        assert_eq!((canvas.width(), canvas.height()), (wide as usize, high as usize), "a picture of another size");
        let geometry = self.geometry;
        let (width, height) = (geometry.width as usize, geometry.height as usize);
        for y in 0..height {
            self.row.fill(0);
            for x in 0..width {
                let (column, line) = self.rotate.source(x, y, width, height);
                let colour = canvas.row(line)[column];
                match geometry.bits {
                    1 => {
                        let set = Geometry::is_bright(colour) != geometry.set_is_dark;
                        self.row[x / 8] |= u8::from(set) << (x % 8);
                    }
                    bits => {
                        let bytes = bits as usize / 8;
                        let pixel = geometry.pixel(colour).to_ne_bytes();
                        let used = if cfg!(target_endian = "big") { &pixel[4 - bytes..] } else { &pixel[..bytes] };
                        self.row[x * bytes..][..bytes].copy_from_slice(used);
                    }
                }
            }
            let at = geometry.start + y * geometry.stride;
            self.device.memory()[at..][..self.row.len()].copy_from_slice(&self.row);
        }
    }
}

#[cfg(target_os = "linux")]
pub use linux::Fbdev;

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use libc::{c_int, c_ulong};
    use memmap2::{MmapMut, MmapOptions};

    use super::{DisplayError, Field, Geometry};

    // linux/fb.h; libc does not have it.
    const FBIOGET_VSCREENINFO: c_ulong = 0x4600;
    const FBIOGET_FSCREENINFO: c_ulong = 0x4602;
    const FBIOBLANK: c_ulong = 0x4611;
    const FB_BLANK_UNBLANK: c_ulong = 0;
    const FB_TYPE_PACKED_PIXELS: u32 = 0;
    const FB_VISUAL_MONO01: u32 = 0;
    const FB_VISUAL_MONO10: u32 = 1;
    const FB_VISUAL_TRUECOLOR: u32 = 2;
    const FB_VISUAL_DIRECTCOLOR: u32 = 4;

    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct BitField {
        offset: u32,
        length: u32,
        msb_right: u32,
    }

    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Variable {
        xres: u32,
        yres: u32,
        xres_virtual: u32,
        yres_virtual: u32,
        xoffset: u32,
        yoffset: u32,
        bits_per_pixel: u32,
        grayscale: u32,
        red: BitField,
        green: BitField,
        blue: BitField,
        transp: BitField,
        nonstd: u32,
        activate: u32,
        height: u32,
        width: u32,
        accel_flags: u32,
        timing: [u32; 11],
        reserved: [u32; 4],
    }

    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Fixed {
        id: [u8; 16],
        smem_start: c_ulong,
        smem_len: u32,
        kind: u32,
        type_aux: u32,
        visual: u32,
        xpanstep: u16,
        ypanstep: u16,
        ywrapstep: u16,
        line_length: u32,
        mmio_start: c_ulong,
        mmio_len: u32,
        accel: u32,
        capabilities: u16,
        reserved: [u16; 2],
    }

    const _: () = assert!(size_of::<Variable>() == 160);
    #[cfg(target_pointer_width = "64")]
    const _: () = assert!(size_of::<Fixed>() == 80);

    /// A framebuffer of the kernel.
    pub struct Fbdev {
        geometry: Geometry,
        memory: MmapMut,
    }

    impl Fbdev {
        /// Opens one, for instance `/dev/fb0`, and wakes its screen.
        ///
        /// # Errors
        /// If it is not there, not ours to write, or of a kind that is not supported.
        pub fn open(path: &Path) -> Result<Self, DisplayError> {
            let name = || path.display().to_string();
            let failed = |what: &'static str| {
                move |error: io::Error| DisplayError::Device { device: path.display().to_string(), what, error }
            };
            let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("opening it"))?;
            let mut variable = Variable::default();
            let mut fixed = Fixed::default();
            // SAFETY: the request writes one fb_var_screeninfo, which `Variable` is.
            let asked = unsafe { libc::ioctl(file.as_raw_fd(), FBIOGET_VSCREENINFO as _, &raw mut variable) };
            check(asked).map_err(failed("asking for its resolution (is it a framebuffer?)"))?;
            // SAFETY: the request writes one fb_fix_screeninfo, which `Fixed` is.
            let asked = unsafe { libc::ioctl(file.as_raw_fd(), FBIOGET_FSCREENINFO as _, &raw mut fixed) };
            check(asked).map_err(failed("asking for its memory"))?;
            let geometry = geometry(&variable, &fixed);
            let refused = |why| DisplayError::Geometry { device: name(), geometry, why };
            let mono = [FB_VISUAL_MONO01, FB_VISUAL_MONO10].contains(&fixed.visual);
            let colour = [FB_VISUAL_TRUECOLOR, FB_VISUAL_DIRECTCOLOR].contains(&fixed.visual);
            if fixed.kind != FB_TYPE_PACKED_PIXELS || !(if geometry.bits == 1 { mono } else { colour }) {
                return Err(refused("its pixels are not colours in a row: set another mode (fbset -depth 32)"));
            }
            geometry.validate(fixed.smem_len as usize).map_err(refused)?;
            // SAFETY: device memory of `smem_len` bytes; others may draw there too, which garbles the picture and no
            // more, since bytes are only written.
            let memory = unsafe { map(&file, fixed.smem_len as usize) }.map_err(failed("mapping its memory"))?;
            // SAFETY: takes a number. Not every driver can; a screen that stays dark is seen.
            let _ = unsafe { libc::ioctl(file.as_raw_fd(), FBIOBLANK as _, FB_BLANK_UNBLANK) };
            Ok(Self { geometry, memory })
        }
    }

    /// Maps device memory.
    ///
    /// # Safety
    /// The device must keep `length` bytes mapped for as long as the mapping lives.
    unsafe fn map(file: &File, length: usize) -> io::Result<MmapMut> {
        // SAFETY: as the caller promised.
        unsafe { MmapOptions::new().len(length).map_mut(file) }
    }

    fn check(code: c_int) -> io::Result<()> {
        if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn geometry(variable: &Variable, fixed: &Fixed) -> Geometry {
        let field = |field: BitField| Field { offset: field.offset, length: field.length };
        let bits = variable.bits_per_pixel;
        let (stride, left) = (fixed.line_length as usize, variable.xoffset as usize * bits as usize / 8);
        Geometry {
            width: variable.xres,
            height: variable.yres,
            stride,
            start: (variable.yoffset as usize).saturating_mul(stride).saturating_add(left),
            bits,
            set_is_dark: fixed.visual == FB_VISUAL_MONO01,
            colours: [field(variable.red), field(variable.green), field(variable.blue)],
        }
    }

    impl super::Device for Fbdev {
        fn geometry(&self) -> Geometry {
            self.geometry
        }

        fn memory(&mut self) -> &mut [u8] {
            &mut self.memory
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(Geometry, Vec<u8>);

    impl Device for Fake {
        fn geometry(&self) -> Geometry {
            self.0
        }

        fn memory(&mut self) -> &mut [u8] {
            &mut self.1
        }
    }

    fn field(offset: u32, length: u32) -> Field {
        Field { offset, length }
    }

    fn geometry(bits: u32) -> Geometry {
        let colours = match bits {
            16 => [field(11, 5), field(5, 6), field(0, 5)],
            _ => [field(16, 8), field(8, 8), field(0, 8)],
        };
        let stride = (3 * bits as usize).div_ceil(8) + 5;
        Geometry { width: 3, height: 2, stride, start: 7, bits, set_is_dark: false, colours }
    }

    /// Red, green, blue above white, black, red.
    fn picture() -> Canvas<Rgb565> {
        let mut canvas = Canvas::new(3, 2, Rgb565::BLACK);
        let colours = [Rgb565::RED, Rgb565::GREEN, Rgb565::BLUE, Rgb565::WHITE, Rgb565::BLACK, Rgb565::RED];
        let area = canvas.bounding_box();
        canvas.fill_contiguous(&area, colours).unwrap();
        canvas
    }

    fn shown(geometry: Geometry, rotate: Rotate, canvas: &Canvas<Rgb565>) -> Vec<u8> {
        let fake = Fake(geometry, vec![0xee; 64]);
        let mut screen = Framebuffer::new(fake, "fake", rotate).unwrap();
        screen.show(canvas);
        screen.device.1
    }

    #[test]
    fn pixels_lie_where_the_geometry_says_and_nothing_else_is_touched() {
        let memory = shown(geometry(32), Rotate::No, &picture());
        let expected = [0xff_0000_u32, 0x00_ff00, 0x00_00ff].map(u32::to_ne_bytes).concat();
        assert_eq!(memory[..7], [0xee; 7]);
        assert_eq!(memory[7..19], expected);
        assert_eq!(memory[19..24], [0xee; 5], "between the rows");
        assert_eq!(memory[24..36], [0xff_ffff_u32, 0, 0xff_0000].map(u32::to_ne_bytes).concat());
        assert!(memory[36..].iter().all(|&b| b == 0xee));
        let memory = shown(geometry(16), Rotate::No, &picture());
        assert_eq!(memory[7..13], [0xf800_u16, 0x07e0, 0x001f].map(u16::to_ne_bytes).concat());
        let mut swapped = geometry(32);
        swapped.colours.swap(0, 2);
        assert_eq!(shown(swapped, Rotate::No, &picture())[7..11], 0x00_00ff_u32.to_ne_bytes());
    }

    #[test]
    fn single_bits_are_bright_or_dark() {
        // Green and white are bright; the leftmost pixel is the lowest bit.
        let memory = shown(geometry(1), Rotate::No, &picture());
        assert_eq!((memory[7], memory[7 + 6]), (0b010, 0b001));
        let dark = Geometry { set_is_dark: true, ..geometry(1) };
        assert_eq!(shown(dark, Rotate::No, &picture())[7], 0b101);
    }

    #[test]
    fn turned_pictures_have_their_corner_where_it_belongs() {
        let corner = |rotate: Rotate| {
            let (wide, high) = rotate.of(3, 2);
            let mut canvas = Canvas::new(wide as usize, high as usize, Rgb565::BLACK);
            canvas.draw_iter([Pixel(Point::zero(), Rgb565::WHITE), Pixel(Point::new(1, 0), Rgb565::RED)]).unwrap();
            let memory = shown(geometry(16), rotate, &canvas);
            let at = |x: usize, y: usize| u16::from_ne_bytes([memory[7 + 11 * y + 2 * x], memory[8 + 11 * y + 2 * x]]);
            let find = |value| (0..6).map(|i| (i % 3, i / 3)).find(|&(x, y)| at(x, y) == value).unwrap();
            (find(0xffff), find(0xf800))
        };
        assert_eq!(corner(Rotate::No), ((0, 0), (1, 0)));
        assert_eq!(corner(Rotate::Quarter), ((2, 0), (2, 1)), "turned clockwise");
        assert_eq!(corner(Rotate::Half), ((2, 1), (1, 1)));
        assert_eq!(corner(Rotate::ThreeQuarters), ((0, 1), (0, 0)));
    }

    #[test]
    fn a_geometry_that_reaches_beyond_the_memory_is_refused() {
        let good = geometry(32);
        assert_eq!(good.validate(7 + 17 + 12), Ok(()));
        assert!(good.validate(7 + 17 + 11).is_err());
        for bad in [
            Geometry { width: 0, ..good },
            Geometry { height: u32::MAX, ..good },
            Geometry { stride: 11, ..good },
            Geometry { stride: usize::MAX, ..good },
            Geometry { start: usize::MAX, ..good },
            Geometry { bits: 8, ..good },
            Geometry { colours: [field(30, 8), field(8, 8), field(0, 8)], ..good },
            Geometry { colours: [field(0, 0); 3], ..good },
        ] {
            assert!(bad.validate(1 << 20).is_err(), "{bad:?}");
            let error = Framebuffer::new(Fake(bad, vec![0; 100]), "/dev/fb7", Rotate::No).err().unwrap();
            assert!(error.to_string().contains("/dev/fb7"), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_no_framebuffer_is_named() {
        let missing = Fbdev::open(std::path::Path::new("/dev/no-such-fb")).err().unwrap().to_string();
        assert!(missing.contains("/dev/no-such-fb") && missing.contains("output"), "{missing}");
        let other = Fbdev::open(std::path::Path::new("/dev/null")).err().unwrap().to_string();
        assert!(other.contains("is it a framebuffer?"), "{other}");
    }
}
