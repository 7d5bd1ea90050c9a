//! Which frame shows which cell.
