//! How a connection is made, and what is wrong where none comes about.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, LastWill, MqttOptions, NetworkOptions, StateError,
    TlsConfiguration, TlsError, Transport,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

use super::config::{MqttConfig, TlsConfig};

/// Bytes of a packet that is received. Longer ones end the connection, and are no message for a station.
const MAX_INCOMING: usize = 16 << 10;
/// Bytes of a packet that is sent: more than [`MAX_TEXT`](super::MAX_TEXT) and a Sparkplug birth.
const MAX_OUTGOING: usize = 256 << 10;

/// Why there is no connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// A file cannot be used.
    #[error("could not read {what} {}: {why}; check mqtt.{key}", path.display())]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// The key of the configuration that names it.
        key: &'static str,
    },
    /// There is no password where it should be.
    #[error("the environment variable {0} holds no password; set it, or name another in mqtt.password-env")]
    Environment(String),
    /// TLS is not possible with these files.
    #[error("TLS cannot be set up: {0}; check mqtt.tls")]
    Tls(String),
    /// The broker said no.
    #[error("the broker {broker} refused the connection: {why}")]
    Refused {
        /// Host and port.
        broker: String,
        /// What it said and what to do.
        why: &'static str,
    },
    /// It cannot be reached, or the connection broke.
    #[error("no connection to the broker {broker}: {why}")]
    Lost {
        /// Host and port.
        broker: String,
        /// What happened and what to do.
        why: String,
    },
    /// Somebody sends what no station can take.
    #[error(
        "a message of {0} bytes came on one of the station's topics and ended the connection: find out who sends it"
    )]
    TooLong(usize),
}

impl LinkError {
    pub(crate) fn lost(config: &MqttConfig, why: impl Into<String>) -> Self {
        Self::Lost { broker: broker(config), why: why.into() }
    }

    /// From what the client library says.
    pub(crate) fn of(config: &MqttConfig, error: &ConnectionError) -> Self {
        use rumqttc::mqttbytes::Error as Packet;
        let refused = |why| Self::Refused { broker: broker(config), why };
        match error {
            ConnectionError::ConnectionRefused(code) => refused(match code {
                ConnectReturnCode::BadUserNamePassword => {
                    "user name or password is wrong; check mqtt.username and mqtt.password-file"
                }
                ConnectReturnCode::NotAuthorized => {
                    "not authorised; check mqtt.username, mqtt.password-file and the broker's access list"
                }
                ConnectReturnCode::BadClientId => "it does not like mqtt.client-id",
                ConnectReturnCode::ServiceUnavailable => "it is not available at present",
                ConnectReturnCode::RefusedProtocolVersion | ConnectReturnCode::Success => {
                    "it does not speak MQTT 3.1.1"
                }
            }),
            ConnectionError::MqttState(StateError::Deserialization(Packet::PayloadSizeLimitExceeded(size))) => {
                Self::TooLong(*size)
            }
            ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => {
                let within = config.connect_timeout_s;
                Self::lost(
                    config,
                    format!("it did not answer within {within} s; check mqtt.host, mqtt.port and the network"),
                )
            }
            ConnectionError::MqttState(StateError::ConnectionAborted) => {
                Self::lost(config, "it closed the connection; another client may use the same mqtt.client-id")
            }
            ConnectionError::MqttState(StateError::AwaitPingResp) => {
                Self::lost(config, "it has not answered for two mqtt.keep-alive-s")
            }
            ConnectionError::Tls(TlsError::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                Self::lost(config, format!("TLS failed: {error}; check mqtt.tls and the broker's certificate"))
            }
            ConnectionError::Tls(error) => Self::lost(
                config,
                format!("TLS failed: {error}; check mqtt.tls, mqtt.port and the broker's certificate"),
            ),
            ConnectionError::Io(error) => {
                Self::lost(config, format!("{error}; check mqtt.host, mqtt.port and that it runs"))
            }
            other => Self::lost(config, other.to_string()),
        }
    }
}

pub(crate) fn broker(config: &MqttConfig) -> String {
    format!("{}:{}", config.host, config.port)
}

/// Opens a session as the station would, but for a name of its own, its topics and its last will, and closes it: for
/// those who only want to know whether it can be had.
///
/// # Errors
/// Why it cannot.
pub fn try_session(config: &MqttConfig) -> Result<(), LinkError> {
    let config = MqttConfig { client_id: format!("{}-check", config.client()), ..config.clone() };
    let mut options = options(&config, None)?;
    options.set_keep_alive(Duration::from_secs(config.connect_timeout_s.into()));
    let failed = |error: std::io::Error| LinkError::lost(&config, error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let outcome = runtime.block_on(async {
        let (client, mut events) = AsyncClient::new(options, 2);
        events.set_network_options(network(&config));
        let within = Duration::from_secs(config.connect_timeout_s.into());
        // The first event is the broker's answer.
        match tokio::time::timeout(within, events.poll()).await {
            Ok(Ok(_)) => {
                let _ = client.try_disconnect();
                // So that the broker hears of it.
                let _ = tokio::time::timeout(Duration::from_millis(200), events.poll()).await;
                Ok(())
            }
            Ok(Err(error)) => Err(LinkError::of(&config, &error)),
            Err(_) => Err(LinkError::of(&config, &ConnectionError::NetworkTimeout)),
        }
    });
    runtime.shutdown_background();
    outcome
}

/// What the client library needs for one connection. Passwords and certificates are read anew.
pub(crate) fn options(config: &MqttConfig, will: Option<LastWill>) -> Result<MqttOptions, LinkError> {
    let mut options = MqttOptions::new(config.client(), config.host.as_str(), config.port);
    options
        .set_keep_alive(Duration::from_secs(config.keep_alive_s.into()))
        // What the broker would keep for us while we are away are triggers of cells that are past.
        .set_clean_session(true)
        .set_max_packet_size(MAX_INCOMING, MAX_OUTGOING)
        // We have one verdict in flight. A full window would stop the library from seeing that its client is gone.
        .set_inflight(8);
    if let Some(will) = will {
        options.set_last_will(will);
    }
    if !config.username.is_empty() {
        options.set_credentials(config.username.as_str(), password(config)?);
    }
    if let Some(tls) = &config.tls {
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls_client(tls)?))));
    }
    Ok(options)
}

pub(crate) fn network(config: &MqttConfig) -> NetworkOptions {
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(config.connect_timeout_s.into());
    network.set_tcp_nodelay(true);
    network
}

fn password(config: &MqttConfig) -> Result<String, LinkError> {
    if let Some(path) = &config.password_file {
        let text = std::fs::read_to_string(path).map_err(|error| LinkError::File {
            what: "the password in",
            path: path.clone(),
            why: error.to_string(),
            key: "password-file",
        })?;
        return Ok(text.lines().next().unwrap_or_default().to_owned());
    }
    match &config.password_env {
        Some(name) => std::env::var(name).map_err(|_| LinkError::Environment(name.clone())),
        None => Ok(String::new()),
    }
}

fn tls_client(config: &TlsConfig) -> Result<ClientConfig, LinkError> {
    let failed = |error: rustls::Error| LinkError::Tls(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&config.ca, "the authority's certificate in", "tls.ca")? {
        roots.add(certificate).map_err(failed)?;
    }
    // Named here, so that no other part of the process decides which one it is.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots);
    let (Some(chain), Some(key_path)) = (&config.certificate, &config.key) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(chain, "the station's certificate in", "tls.certificate")?;
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| LinkError::File {
        what: "the station's private key in",
        path: key_path.clone(),
        why: error.to_string(),
        key: "tls.key",
    })?;
    builder.with_client_auth_cert(chain, key).map_err(failed)
}

fn certificates(path: &Path, what: &'static str, key: &'static str) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let failed = |why: String| LinkError::File { what, path: path.into(), why, key };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("it holds no certificate in PEM".into())) } else { Ok(found) }
}
