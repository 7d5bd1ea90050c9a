//! What `linux/videodev2.h` says, as far as it is used here: structures as the kernel lays them out on 64-bit machines,
//! and the numbers of the calls.

#![allow(missing_docs)] // The header's own names; its documentation is the kernel's.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the layouts of V4L2's structures are those of 64-bit machines");

/// Single-planar video capture.
pub const CAPTURE: u32 = 1;
/// Progressive frames.
pub const FIELD_NONE: u32 = 1;
pub const MEMORY_MMAP: u32 = 1;
/// The kernel gives no more buffers to a queue.
pub const MOST_BUFFERS: u32 = 32;

pub const CAP_VIDEO_CAPTURE: u32 = 0x0000_0001;
pub const CAP_STREAMING: u32 = 0x0400_0000;
pub const CAP_DEVICE_CAPS: u32 = 0x8000_0000;
pub const CAP_TIMEPERFRAME: u32 = 0x1000;

pub const FLAG_ERROR: u32 = 0x40;
pub const FLAG_TIMESTAMP_MASK: u32 = 0xe000;
pub const FLAG_TIMESTAMP_MONOTONIC: u32 = 0x2000;

pub const CTRL_NEXT: u32 = 0x8000_0000;
pub const CTRL_FLAG_DISABLED: u32 = 0x0001;
pub const CTRL_FLAG_READ_ONLY: u32 = 0x0004;
pub const CTRL_FLAG_WRITE_ONLY: u32 = 0x0040;
pub const CTRL_TYPE_INTEGER: u32 = 1;
pub const CTRL_TYPE_BOOLEAN: u32 = 2;
pub const CTRL_TYPE_MENU: u32 = 3;
pub const CTRL_TYPE_INTEGER64: u32 = 5;
pub const CTRL_TYPE_BITMASK: u32 = 8;
pub const CTRL_TYPE_INTEGER_MENU: u32 = 9;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Capability {
    pub driver: [u8; 16],
    pub card: [u8; 32],
    pub bus_info: [u8; 32],
    pub version: u32,
    pub capabilities: u32,
    pub device_caps: u32,
    pub reserved: [u32; 3],
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct FormatDescription {
    pub index: u32,
    pub kind: u32,
    pub flags: u32,
    pub description: [u8; 32],
    pub pixelformat: u32,
    pub mbus_code: u32,
    pub reserved: [u32; 3],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PixFormat {
    pub width: u32,
    pub height: u32,
    pub pixelformat: u32,
    pub field: u32,
    pub bytesperline: u32,
    pub sizeimage: u32,
    pub colorspace: u32,
    pub private: u32,
    pub flags: u32,
    pub encoding: u32,
    pub quantization: u32,
    pub transfer: u32,
}

/// The union of all kinds' formats holds pointers: it starts at a multiple of 8.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Format {
    pub kind: u32,
    pub padding: u32,
    pub pix: PixFormat,
    pub rest: [u8; 152],
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct RequestBuffers {
    pub count: u32,
    pub kind: u32,
    pub memory: u32,
    pub capabilities: u32,
    pub flags: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Buffer {
    pub index: u32,
    pub kind: u32,
    pub bytesused: u32,
    pub flags: u32,
    pub field: u32,
    pub padding: u32,
    pub seconds: i64,
    pub microseconds: i64,
    pub timecode: [u32; 4],
    pub sequence: u32,
    pub memory: u32,
    /// A union with a pointer; of mmap buffers the low half is the offset to map.
    pub offset: u64,
    pub length: u32,
    pub reserved: u32,
    pub request: i32,
    pub padding2: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct StreamParameters {
    pub kind: u32,
    pub capability: u32,
    pub mode: u32,
    pub numerator: u32,
    pub denominator: u32,
    pub extended: u32,
    pub buffers: u32,
    pub rest: [u8; 176],
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct QueryControl {
    pub id: u32,
    pub kind: u32,
    pub name: [u8; 32],
    pub minimum: i64,
    pub maximum: i64,
    pub step: u64,
    pub default: i64,
    pub flags: u32,
    pub elem_size: u32,
    pub elems: u32,
    pub dimensions: u32,
    pub dims: [u32; 4],
    pub reserved: [u32; 32],
}

#[derive(Clone, Copy)]
#[repr(C, packed)]
pub struct Control {
    pub id: u32,
    pub size: u32,
    pub reserved: u32,
    /// A union; 32-bit controls use the low half.
    pub value: i64,
}

#[repr(C)]
pub struct Controls {
    pub which: u32,
    pub count: u32,
    pub error: u32,
    pub request: i32,
    pub reserved: u32,
    pub controls: *mut Control,
}

/// All zero, which is what the kernel wants where nothing is said.
macro_rules! zeroed {
    ($($name:ident)*) => {$(
        impl Default for $name {
            fn default() -> Self {
                // SAFETY: the structure holds numbers and pointers only, for all of which zero bytes are a value.
                unsafe { std::mem::zeroed() }
            }
        }
    )*};
}
zeroed!(Capability FormatDescription Format RequestBuffers Buffer StreamParameters QueryControl Control Controls);

const fn number(direction: u64, size: usize, nr: u64) -> u64 {
    direction << 30 | (size as u64) << 16 | (b'V' as u64) << 8 | nr
}
const READ: u64 = 2;
const WRITE: u64 = 1;
const BOTH: u64 = 3;

pub const QUERYCAP: u64 = number(READ, size_of::<Capability>(), 0);
pub const ENUM_FMT: u64 = number(BOTH, size_of::<FormatDescription>(), 2);
pub const S_FMT: u64 = number(BOTH, size_of::<Format>(), 5);
pub const REQBUFS: u64 = number(BOTH, size_of::<RequestBuffers>(), 8);
pub const QUERYBUF: u64 = number(BOTH, size_of::<Buffer>(), 9);
pub const QBUF: u64 = number(BOTH, size_of::<Buffer>(), 15);
pub const DQBUF: u64 = number(BOTH, size_of::<Buffer>(), 17);
pub const STREAMON: u64 = number(WRITE, size_of::<i32>(), 18);
pub const STREAMOFF: u64 = number(WRITE, size_of::<i32>(), 19);
pub const S_PARM: u64 = number(BOTH, size_of::<StreamParameters>(), 22);
pub const G_EXT_CTRLS: u64 = number(BOTH, size_of::<Controls>(), 71);
pub const S_EXT_CTRLS: u64 = number(BOTH, size_of::<Controls>(), 72);
pub const QUERY_EXT_CTRL: u64 = number(BOTH, size_of::<QueryControl>(), 103);

// What the kernel's header gives on x86-64 and aarch64.
const _: () = {
    assert!(size_of::<Capability>() == 104 && size_of::<FormatDescription>() == 64 && size_of::<PixFormat>() == 48);
    assert!(size_of::<Format>() == 208 && size_of::<RequestBuffers>() == 20 && size_of::<Buffer>() == 88);
    assert!(size_of::<StreamParameters>() == 204 && size_of::<QueryControl>() == 232);
    assert!(size_of::<Control>() == 20 && size_of::<Controls>() == 32);
    assert!(std::mem::offset_of!(Format, pix) == 8 && std::mem::offset_of!(Buffer, seconds) == 24);
    assert!(std::mem::offset_of!(Buffer, sequence) == 56 && std::mem::offset_of!(Buffer, offset) == 64);
    assert!(std::mem::offset_of!(Buffer, length) == 72 && std::mem::offset_of!(Controls, controls) == 24);
    assert!(std::mem::offset_of!(QueryControl, minimum) == 40 && std::mem::offset_of!(QueryControl, flags) == 72);
    assert!(QUERYCAP == 0x8068_5600 && ENUM_FMT == 0xc040_5602 && S_FMT == 0xc0d0_5605 && REQBUFS == 0xc014_5608);
    assert!(QUERYBUF == 0xc058_5609 && QBUF == 0xc058_560f && DQBUF == 0xc058_5611 && STREAMON == 0x4004_5612);
    assert!(STREAMOFF == 0x4004_5613 && S_PARM == 0xc0cc_5616 && QUERY_EXT_CTRL == 0xc0e8_5667);
    assert!(G_EXT_CTRLS == 0xc020_5647 && S_EXT_CTRLS == 0xc020_5648);
};

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The header of the machine that the tests run on, asked through its C compiler.
    #[test]
    fn the_kernels_header_says_the_same() {
        let header = std::path::Path::new("/usr/include/linux/videodev2.h");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        if !header.exists() || Command::new(&compiler).arg("--version").output().is_err() {
            return; // The assertions above hold what it said when this was written.
        }
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("a.c"), folder.path().join("a"));
        let claims = [
            ("VIDIOC_QUERYCAP", QUERYCAP),
            ("VIDIOC_ENUM_FMT", ENUM_FMT),
            ("VIDIOC_S_FMT", S_FMT),
            ("VIDIOC_REQBUFS", REQBUFS),
            ("VIDIOC_QUERYBUF", QUERYBUF),
            ("VIDIOC_QBUF", QBUF),
            ("VIDIOC_DQBUF", DQBUF),
            ("VIDIOC_STREAMON", STREAMON),
            ("VIDIOC_STREAMOFF", STREAMOFF),
            ("VIDIOC_S_PARM", S_PARM),
            ("VIDIOC_G_EXT_CTRLS", G_EXT_CTRLS),
            ("VIDIOC_S_EXT_CTRLS", S_EXT_CTRLS),
            ("VIDIOC_QUERY_EXT_CTRL", QUERY_EXT_CTRL),
            ("V4L2_CAP_VIDEO_CAPTURE", CAP_VIDEO_CAPTURE.into()),
            ("V4L2_CAP_STREAMING", CAP_STREAMING.into()),
            ("V4L2_CAP_DEVICE_CAPS", CAP_DEVICE_CAPS.into()),
            ("V4L2_CAP_TIMEPERFRAME", CAP_TIMEPERFRAME.into()),
            ("V4L2_BUF_TYPE_VIDEO_CAPTURE", CAPTURE.into()),
            ("V4L2_FIELD_NONE", FIELD_NONE.into()),
            ("V4L2_MEMORY_MMAP", MEMORY_MMAP.into()),
            ("V4L2_BUF_FLAG_ERROR", FLAG_ERROR.into()),
            ("V4L2_BUF_FLAG_TIMESTAMP_MASK", FLAG_TIMESTAMP_MASK.into()),
            ("V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC", FLAG_TIMESTAMP_MONOTONIC.into()),
            ("V4L2_CTRL_FLAG_NEXT_CTRL", CTRL_NEXT.into()),
            ("V4L2_CTRL_FLAG_DISABLED", CTRL_FLAG_DISABLED.into()),
            ("V4L2_CTRL_FLAG_READ_ONLY", CTRL_FLAG_READ_ONLY.into()),
            ("V4L2_CTRL_FLAG_WRITE_ONLY", CTRL_FLAG_WRITE_ONLY.into()),
            ("V4L2_CTRL_TYPE_INTEGER", CTRL_TYPE_INTEGER.into()),
            ("V4L2_CTRL_TYPE_BOOLEAN", CTRL_TYPE_BOOLEAN.into()),
            ("V4L2_CTRL_TYPE_MENU", CTRL_TYPE_MENU.into()),
            ("V4L2_CTRL_TYPE_INTEGER64", CTRL_TYPE_INTEGER64.into()),
            ("V4L2_CTRL_TYPE_BITMASK", CTRL_TYPE_BITMASK.into()),
            ("V4L2_CTRL_TYPE_INTEGER_MENU", CTRL_TYPE_INTEGER_MENU.into()),
        ];
        let mut text = String::from("#include <linux/videodev2.h>\n#include <stdio.h>\nint main(void) {\n");
        for (name, _) in claims {
            text += &format!("printf(\"%llu\\n\", (unsigned long long)({name}) & 0xffffffffULL);\n");
        }
        std::fs::write(&source, text + "return 0; }\n").unwrap();
        let built = Command::new(&compiler).arg(&source).arg("-o").arg(&program).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let said = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
        for ((name, ours), theirs) in claims.into_iter().zip(said.lines()) {
            assert_eq!(ours, theirs.parse::<u64>().unwrap(), "{name}");
        }
        assert_eq!(said.lines().count(), claims.len());
    }
}
