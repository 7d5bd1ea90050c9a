//! The appliance: from camera and trigger to a durable verdict, in fixed memory and in time.

pub mod status;
