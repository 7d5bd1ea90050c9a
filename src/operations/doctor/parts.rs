//! Checks of the station's parts: model, camera, broker, display.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use super::machine::Bytes;
use super::{Broker, Check, OpenCamera};
use crate::backbone::weights::Loaded;
use crate::camera::{CameraError, Shot};
use crate::display::{DisplayConfig, Output};
use crate::model::Model;
use crate::update::disk::Folder;
use crate::update::slots::{Slots, UpdateError};

/// How long a frame is waited for.
const FRAME: Duration = Duration::from_secs(3);
/// How long each of the broker's addresses is tried.
const CONNECT: Duration = Duration::from_secs(3);

/// What other checks want to know of the model.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct About {
    /// When it was made, in seconds since 1970; none if it does not say.
    pub(super) made: Option<u64>,
    /// Bytes of its file.
    pub(super) bytes: Option<u64>,
}

/// Whether the model is whole, calibrated, and of the backbone at hand.
pub(super) fn model(path: Option<&Path>, backbone: Option<&Path>) -> (Vec<Check>, About) {
    let Some(path) = path else {
        let remedy = "name the model's file in the configuration";
        return (vec![Check::fail("model", "none is named", remedy)], About::default());
    };
    let model = match Model::open(path) {
        Ok(model) => model,
        Err(error) => {
            let remedy = "copy the file again from where it was fitted, or fit it with this version";
            return (vec![Check::fail("model", error.to_string(), remedy)], About::default());
        }
    };
    let header = model.header();
    let about =
        About { made: Some(header.provenance.created).filter(|&made| made > 0), bytes: Some(model.bytes() as u64) };
    let seen = format!(
        "{}: {:.8}, fitted on {} good cells, {}",
        path.display(),
        model.id(),
        header.provenance.cells,
        Bytes(model.bytes() as u64)
    );
    let mut checks = vec![match &header.calibration {
        None => {
            let remedy = "run `cellgate calibrate` on good cells: without it every cell is INVALID";
            Check::fail("model", format!("{seen}, without a calibration"), remedy)
        }
        Some(calibration) if calibration.cells < 100 => {
            let seen = format!("{seen}, calibrated on only {} held-out cells", calibration.cells);
            Check::warn("model", seen, "run `cellgate calibrate` on 100 good cells or more; drift needs them too")
        }
        Some(calibration) => Check::ok("model", format!("{seen}, calibrated on {}", calibration.cells)),
    }];
    let loaded = match backbone {
        Some(path) => Loaded::read(path),
        None => Loaded::embedded(),
    };
    checks.push(match loaded {
        Err(error) => {
            Check::fail("backbone", error.to_string(), "import the weights again (`cellgate backbone import`)")
        }
        Ok(loaded) => match model.check_backbone(loaded.network.identity()) {
            Ok(()) => Check::ok("backbone", format!("{:.8}, which the model was fitted with", header.backbone)),
            Err(error) => {
                let remedy = "name the backbone that the model was fitted with in the configuration, or fit again";
                Check::fail("backbone", error.to_string(), remedy)
            }
        },
    });
    (checks, about)
}

/// Whether the state folder of updates can be used, whose signatures count there, and what is in force.
pub(super) fn updates(path: &Path) -> Check {
    let keys = "install a key set: `cellgate update install KEYS.cgk --trust`";
    if !path.is_dir() {
        return Check::warn("updates", format!("there is no folder {}", path.display()), keys);
    }
    let record = match Slots::look(&Folder::look(path)) {
        Ok(record) => record,
        Err(error @ UpdateError::NoKeys) => return Check::warn("updates", error.to_string(), keys),
        Err(error) => {
            let remedy = "set the folder up anew: move it away, and install the key set and a bundle";
            return Check::fail("updates", format!("{}: {error}", path.display()), remedy);
        }
    };
    let in_force = record.in_force().map_or_else(
        || "the model of the configuration is in force".to_owned(),
        |(slot, fitted)| format!("version {} is in force, from slot {slot}", fitted.version),
    );
    let keys = &record.keys;
    let seen = format!(
        "{}: {in_force}; key set {}, {} of {} must sign; {}",
        path.display(),
        keys.version,
        keys.threshold,
        keys.keys.len(),
        record.last
    );
    match tempfile::NamedTempFile::new_in(path) {
        Ok(_) => Check::ok("updates", seen),
        Err(error) => {
            Check::fail("updates", format!("{seen}; writing there: {error}"), "let the station's user write there")
        }
    }
}

/// Whether the camera opens and gives a frame with something in it.
pub(super) fn camera(open: OpenCamera<'_>) -> Check {
    let mut camera = match open() {
        Ok(camera) => camera,
        Err(why) => {
            let remedy =
                "check cable, power, the device's name in the configuration, and that no other program uses it";
            return Check::fail("camera", why, remedy);
        }
    };
    let format = camera.format();
    let name = format!("{}, {}×{}, white {}", camera.describe(), format.width, format.height, format.white);
    if format.white == 0 {
        return Check::fail("camera", format!("{name}: full scale cannot be 0"), "correct the pixel format");
    }
    let mut shot = Shot::new(format.width, format.height, format.white);
    match camera.next(&mut shot, FRAME) {
        Ok(()) => {
            let pixels = shot.frame.pixels();
            let (low, high) = pixels.iter().fold((u16::MAX, 0), |(low, high), &p| (low.min(p), high.max(p)));
            let mean = pixels.iter().map(|&p| f64::from(p)).sum::<f64>() / pixels.len().max(1) as f64;
            let share = 100.0 * mean / f64::from(format.white);
            let seen = format!("{name}: a frame came, {share:.1} % bright in the mean");
            if low >= high {
                let remedy = "take off the lens cap, check exposure and the shift and mask of the pixel format";
                return Check::warn("camera", format!("{seen}, all pixels alike"), remedy);
            }
            Check::ok("camera", seen)
        }
        Err(CameraError::Nothing(_)) => Check::warn(
            "camera",
            format!("{name}: opened, and no frame came within {} s", FRAME.as_secs()),
            "a triggered camera waits for its trigger: let a cell pass and try again; else check trigger wiring and mode",
        ),
        Err(CameraError::End) => {
            Check::fail("camera", format!("{name}: there is no frame to replay"), "name a folder with images in it")
        }
        Err(error @ CameraError::Damaged { .. }) => {
            Check::warn("camera", format!("{name}: {error}"), "check cable, hub and bandwidth; lower the frame rate")
        }
        Err(error) => Check::fail("camera", format!("{name}: {error}"), "check cable and power"),
    }
}

/// Whether the broker is found, answers, and lets us in: each only if the one before did.
pub(super) fn broker(broker: Broker<'_>) -> Vec<Check> {
    let Broker { host, port, session } = broker;
    let addresses = match (host, port).to_socket_addrs().map(Vec::from_iter) {
        Ok(addresses) if !addresses.is_empty() => addresses,
        found => {
            let why = found.err().map_or("no address".into(), |error| error.to_string());
            let remedy = "check the broker's name in the configuration and this machine's DNS (resolvectl query)";
            return vec![Check::fail("broker name", format!("{host}: {why}"), remedy)];
        }
    };
    let shown: Vec<String> = addresses.iter().take(4).map(ToString::to_string).collect();
    let mut checks = vec![Check::ok("broker name", format!("{host} is {}", shown.join(", ")))];
    // A name can have many addresses; the first ones tell.
    let mut refused = None;
    let reached = addresses.iter().take(4).find(|address| match TcpStream::connect_timeout(address, CONNECT) {
        Ok(_) => true,
        Err(error) => {
            refused = Some(error);
            false
        }
    });
    let Some(reached) = reached else {
        let why = refused.map_or("no answer".into(), |error| error.to_string());
        let remedy =
            "check that the broker runs and listens there, and the firewalls between; verdicts are kept until then";
        checks.push(Check::fail("broker", format!("connecting to {host}:{port}: {why}"), remedy));
        return checks;
    };
    checks.push(Check::ok("broker", format!("{reached} takes connections")));
    checks.extend(session.map(|open| match open() {
        Ok(seen) => Check::ok("broker session", seen),
        Err(why) => Check::fail(
            "broker session",
            why,
            "check the CA file, the certificate's dates and name, user and password, and the broker's log",
        ),
    }));
    checks
}

/// Whether the display can be used; it keeps its picture.
pub(super) fn display(config: &DisplayConfig) -> Option<Check> {
    match config.output {
        Output::None => None,
        Output::Png => Some(match crate::whole_file::check(config.path()) {
            Ok(()) => Check::ok("display", format!("{} can be written", config.path().display())),
            Err(error) => Check::warn(
                "display",
                format!("writing {}: {error}", config.path().display()),
                "make the folder for the service's user (RuntimeDirectory=cellgate in the unit does so)",
            ),
        }),
        Output::Framebuffer => Some(framebuffer(config)),
    }
}

#[cfg(target_os = "linux")]
fn framebuffer(config: &DisplayConfig) -> Check {
    use crate::display::framebuffer::{Device, Fbdev};
    match Fbdev::open(config.path()) {
        Ok(device) => {
            let shape = device.geometry();
            let path = config.path().display();
            Check::ok("display", format!("{path}: {}×{}, {} bits", shape.width, shape.height, shape.bits))
        }
        // The text says what to do.
        Err(error) => Check::warn("display", error.to_string(), "the station runs without it"),
    }
}

#[cfg(not(target_os = "linux"))]
fn framebuffer(_: &DisplayConfig) -> Check {
    Check::warn("display", "only Linux has framebuffers", "set `display.output` to png or none")
}
