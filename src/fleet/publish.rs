//! Offers and chunks, brought to the broker and taken away again.

use std::io::Read;
use std::ops::ControlFlow;

use thiserror::Error;

use super::connection::{FleetError, Listener, Sender};
use super::reach::{Checked, ReachError};
use crate::outbox::mqtt::MqttConfig;
use crate::update::bundle::Hash;
use crate::update::message::{MessageError, Offer, chunk_topic, offer_topic};

/// Why something is not at the broker.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The broker.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The bundle's file.
    #[error(transparent)]
    Bundle(#[from] ReachError),
    /// The bundle's file is not the one that was checked.
    #[error("the bundle was changed while it was sent: offer it again")]
    Changed,
    /// The offer is none.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Whoever watches the progress wants no more.
    #[error("stopped half way; nothing is offered yet, and the same command goes through all of it again")]
    Stopped,
}

/// What the broker keeps on a topic.
fn kept(config: &MqttConfig, topic: &str) -> Result<Option<Vec<u8>>, FleetError> {
    let mut found = None;
    Listener::open(config, &[topic.to_owned()], |heard| found = Some(heard.payload.clone()))?;
    Ok(found)
}

/// Sets a group's offer, and makes sure that the broker keeps it: MQTT 3.1.1 does not tell who may not write.
///
/// # Errors
/// If the broker cannot be reached, or does not keep it.
pub fn set_offer(config: &MqttConfig, group: &str, offer: &Offer) -> Result<(), PublishError> {
    let (topic, text) = (offer_topic(group), offer.encode()?);
    let mut sender = Sender::open(config)?;
    sender.send(&topic, text.clone().into_bytes())?;
    sender.flush()?;
    if kept(config, &topic)? == Some(text.into_bytes()) { Ok(()) } else { Err(FleetError::NotKept(topic).into()) }
}

/// Puts a bundle's chunks at the broker, one in memory at a time. `progress` is told the bytes sent so far.
///
/// # Errors
/// If the broker cannot be reached or does not keep them, or the file changes meanwhile.
pub fn set_chunks(
    config: &MqttConfig,
    group: &str,
    bundle: &Checked,
    offer: &Offer,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<(), PublishError> {
    let mut sender = Sender::open(config)?;
    let (mut file, mut hash, mut sent) = (bundle.open_at(0)?, blake3::Hasher::new(), 0);
    let failed = |source| ReachError::Io { path: bundle.path.clone(), source };
    let (mut last, mut index) = (String::new(), 0);
    while sent < offer.bytes {
        let mut chunk = vec![0; (offer.bytes - sent).min(offer.chunk_bytes.into()) as usize];
        file.read_exact(&mut chunk).map_err(failed)?;
        hash.update(&chunk);
        sent += chunk.len() as u64;
        last = chunk_topic(group, &offer.bundle, index);
        sender.send(&last, chunk)?;
        index += 1;
        if progress(sent).is_break() {
            return Err(PublishError::Stopped);
        }
    }
    sender.flush()?;
    if Hash(*hash.finalize().as_bytes()) != offer.bundle {
        return Err(PublishError::Changed);
    }
    // A broker that does not keep one of that size, or not for us, keeps none.
    match kept(config, &last)? {
        Some(_) => Ok(()),
        None => Err(FleetError::NotKept(last).into()),
    }
}

/// Takes the chunks of an offer's bundle away.
///
/// # Errors
/// If the broker cannot be reached.
pub fn clear_chunks(config: &MqttConfig, group: &str, offer: &Offer) -> Result<(), FleetError> {
    let mut sender = Sender::open(config)?;
    for index in 0..if offer.chunks { offer.chunk_count() } else { 0 } {
        sender.send(&chunk_topic(group, &offer.bundle, index), Vec::new())?;
    }
    sender.flush()
}

/// Takes a group's offer away and every chunk that lies in its name, those of an interrupted offer too; says how many
/// chunks there were. `progress` is told so far.
///
/// # Errors
/// If the broker cannot be reached, or keeps them.
pub fn withdraw(config: &MqttConfig, group: &str, mut progress: impl FnMut(u64)) -> Result<u64, PublishError> {
    let mut sender = Sender::open(config)?;
    let topic = offer_topic(group);
    sender.send(&topic, Vec::new())?;
    sender.flush()?;
    if kept(config, &topic)?.is_some() {
        return Err(FleetError::NotKept(format!("the withdrawal of {topic}")).into());
    }
    let filter = format!("cellgate/fleet/{group}/bundle/+/+");
    let mut cleared = 0;
    loop {
        // A broker may give out less than it has when much of it waits: until nothing comes.
        let (mut found, mut failed) = (0_u64, Ok(()));
        Listener::open(config, std::slice::from_ref(&filter), |heard| {
            if !heard.payload.is_empty() && failed.is_ok() {
                failed = sender.send(&heard.topic, Vec::new());
                found += 1;
                progress(cleared + found);
            }
        })?;
        failed?;
        sender.flush()?;
        cleared += found;
        if found == 0 {
            return Ok(cleared);
        }
        if cleared > MAX_CLEARED {
            return Err(FleetError::NotKept(format!("the withdrawal of {filter}")).into());
        }
    }
}

/// Chunks that are taken away at most: more than the largest bundle has, a few times over. A broker that lets us read and
/// not write would otherwise give the same ones for ever.
const MAX_CLEARED: u64 = 1 << 20;
