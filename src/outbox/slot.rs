//! How the outbox lies in its file: a block that says what it is, two records of the position, and the slots.
//!
//! ```text
//!      0  "cellgate outbox\n", version, slots, checksum       written once, when the file is made
//!   4096  position record, odd generations                    boot, delivered, dropped, next: the valid record of the
//!   8192  position record, even generations                   higher generation holds
//!  12288  slot 0, slot 1, …                                   verdict number n lies in slot n % slots, 2,048 bytes each
//! ```
//!
//! All numbers are little-endian. A checksum is the first 8 bytes of the BLAKE3 hash of what follows it. A slot never
//! crosses a page, so that an append writes one, and shares no sector with its neighbour, so that a torn write harms none.

use super::Key;

/// Bytes of a payload at most.
pub const MAX_PAYLOAD: usize = 1024;
/// Bytes of the first block and of a position record, each on a page of its own.
pub(super) const BLOCK: usize = 4096;
/// Bytes of a slot.
pub(super) const SLOT: usize = 2048;
/// Where the slots begin.
pub(super) const SLOTS_AT: u64 = 3 * BLOCK as u64;

const MAGIC: &[u8; 16] = b"cellgate outbox\n";
const VERSION: u32 = 1;
const CHECKSUM: usize = 8;
/// Bytes of a slot before its payload.
const HEADER: usize = 48;
/// Bytes of a position record in use.
const POSITION: usize = 48;

/// How far everything has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// Starts so far.
    pub boot: u32,
    /// All verdicts below this number are delivered or dropped.
    pub tail: u64,
    /// Verdicts that were given up before they were delivered.
    pub dropped: u64,
    /// The number of the next verdict.
    pub next: u64,
}

/// What stands in a slot before its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Whose payload it is.
    pub key: Key,
    /// Position when it was written, without `boot` and `next`.
    pub tail: u64,
    pub dropped: u64,
    /// Bytes of the payload.
    pub length: usize,
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM]);
    sum
}

fn seal(bytes: &mut [u8]) {
    let (sum, rest) = bytes.split_at_mut(CHECKSUM);
    sum.copy_from_slice(&checksum(rest));
}

fn sealed(bytes: &[u8]) -> bool {
    bytes.len() > CHECKSUM && bytes[..CHECKSUM] == checksum(&bytes[CHECKSUM..])
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// The first block of a file with so many slots.
pub(super) fn write_first(slots: u32, block: &mut [u8; BLOCK]) {
    block.fill(0);
    block[..16].copy_from_slice(MAGIC);
    block[24..28].copy_from_slice(&VERSION.to_le_bytes());
    block[28..32].copy_from_slice(&slots.to_le_bytes());
    seal(&mut block[16..32]);
}

/// Slots of the file of `size` bytes that begins with this block.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read_first(block: &[u8; BLOCK], size: u64) -> Result<u32, String> {
    if block[..16] != *MAGIC {
        return Err("it does not begin as one".into());
    }
    if !sealed(&block[16..32]) {
        return Err("its first block is damaged".into());
    }
    let number = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    if number(24) != VERSION {
        return Err(format!("it is of format {}, this program writes format {VERSION}", number(24)));
    }
    let slots = number(28);
    let wanted = SLOTS_AT + u64::from(slots) * SLOT as u64;
    if slots == 0 || size != wanted {
        return Err(format!("it has {size} bytes instead of {wanted}"));
    }
    Ok(slots)
}

/// Where the record of this generation lies.
pub(super) fn position_at(generation: u64) -> u64 {
    (2 - generation % 2) * BLOCK as u64
}

/// A record as bytes.
pub(super) fn write_position(position: &Position, generation: u64) -> [u8; POSITION] {
    let mut bytes = [0; POSITION];
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    bytes[16..24].copy_from_slice(&u64::from(position.boot).to_le_bytes());
    bytes[24..32].copy_from_slice(&position.tail.to_le_bytes());
    bytes[32..40].copy_from_slice(&position.dropped.to_le_bytes());
    bytes[40..48].copy_from_slice(&position.next.to_le_bytes());
    seal(&mut bytes);
    bytes
}

/// The record and its generation, if its checksum holds.
pub(super) fn read_position(bytes: &[u8]) -> Option<(Position, u64)> {
    let bytes = &bytes[..POSITION];
    if !sealed(bytes) {
        return None;
    }
    let boot = u32::try_from(word(bytes, 16)).ok()?;
    let position = Position { boot, tail: word(bytes, 24), dropped: word(bytes, 32), next: word(bytes, 40) };
    Some((position, word(bytes, 8)))
}

/// Fills a slot and says how many bytes of it are to be written: the rest is of no meaning.
pub(super) fn write_slot(header: &Header, payload: &[u8], slot: &mut [u8; SLOT]) -> usize {
    let end = HEADER + payload.len();
    slot[8..16].copy_from_slice(&header.key.seq.to_le_bytes());
    slot[16..20].copy_from_slice(&header.key.boot.to_le_bytes());
    slot[20..24].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    slot[24..32].copy_from_slice(&header.tail.to_le_bytes());
    slot[32..40].copy_from_slice(&header.dropped.to_le_bytes());
    slot[40..48].fill(0);
    slot[HEADER..end].copy_from_slice(payload);
    seal(&mut slot[..end]);
    end
}

/// What a slot holds, if its checksum holds.
pub(super) fn read_slot(slot: &[u8]) -> Option<(Header, &[u8])> {
    let length = u32::from_le_bytes([slot[20], slot[21], slot[22], slot[23]]) as usize;
    let seq = word(slot, 8);
    // A slot that was never written is told at a glance.
    if seq == 0 || !(1..=MAX_PAYLOAD).contains(&length) || !sealed(&slot[..HEADER + length]) {
        return None;
    }
    let boot = u32::from_le_bytes([slot[16], slot[17], slot[18], slot[19]]);
    let header = Header { key: Key { boot, seq }, tail: word(slot, 24), dropped: word(slot, 32), length };
    Some((header, &slot[HEADER..HEADER + length]))
}
