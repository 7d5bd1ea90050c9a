//! What TensorRT's inspector says about an engine's layers.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A layer of an engine: often several of the network's, fused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// TensorRT's name, made of those of the network's nodes.
    pub name: String,
    /// What it does, in TensorRT's words.
    pub kind: String,
    /// Types and formats of its outputs, in TensorRT's words.
    pub outputs: Vec<String>,
    /// The implementation that was chosen; empty where TensorRT does not say.
    pub tactic: String,
}

/// Reads the inspector's JSON: `{"Layers": [..], ..}`, where a layer of an engine built without details is its name alone.
pub(super) fn parse(json: &[u8]) -> Result<Vec<Layer>, String> {
    let all: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let layers = all.get("Layers").and_then(Value::as_array).ok_or("there is no list `Layers`")?;
    Ok(layers.iter().map(layer).collect())
}

fn layer(value: &Value) -> Layer {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = value.as_str().map_or_else(|| text("Name"), str::to_owned);
    let outputs = value.get("Outputs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    // `Format/Datatype` is how versions to 10.x call it; later ones have a `Datatype` beside the `Format`.
    let format = |output: &Value| {
        let of = |key: &str| output.get(key).and_then(Value::as_str);
        let parts = [of("Format/Datatype"), of("Datatype"), of("Format")];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    };
    let tactic = [text("TacticName"), text("TacticValue")].into_iter().find(|t| !t.is_empty()).unwrap_or_default();
    Layer { name, kind: text("LayerType"), outputs: outputs.iter().map(format).collect(), tactic }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_with_details_and_without() {
        let json = br#"{"Layers": ["conv1 + relu", {"Name": "a", "LayerType": "CaskConvolution",
            "Outputs": [{"Name": "x", "Format/Datatype": "Half"}, {"Format": "Row major linear", "Datatype": "Half"}],
            "TacticName": "sm80_xmma"}, {"Name": "b", "TacticValue": "0x0"}], "Bindings": ["image"]}"#;
        let layers = parse(json).unwrap();
        assert_eq!((layers[0].name.as_str(), layers[0].kind.as_str()), ("conv1 + relu", ""));
        assert_eq!(layers[1].outputs, ["Half", "Half, Row major linear"]);
        assert_eq!((layers[1].kind.as_str(), layers[1].tactic.as_str()), ("CaskConvolution", "sm80_xmma"));
        assert_eq!(layers[2].tactic, "0x0");
        assert!(parse(b"{}").is_err() && parse(b"").is_err());
        assert_eq!(parse(br#"{"Layers": [3, null]}"#).unwrap().len(), 2);
    }
}
