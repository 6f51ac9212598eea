//! Which of an index's manifests is for a machine: the operating system, architecture and variant,
//! normalised and matched as containerd does (github.com/containerd/platforms).

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Descriptor, ImageIndex};

use crate::Error;
use crate::store::image::Kind;

/// What an image is made for: `linux/amd64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Empty for the base variant: `v8` of arm64, `v1` of amd64.
    variant: String,
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a platform: OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT is expected")]
pub struct PlatformError(String);

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self::new("linux", architecture, "")
    }

    /// With the names that other tools use turned into those of image configurations.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (architecture, variant) = (architecture.to_lowercase(), variant.to_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", ""),
            ("aarch64" | "arm64", "" | "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self {
            os: os.to_lowercase(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// As an index or an image configuration says it.
    pub(crate) fn of(platform: &oci_spec::image::Platform) -> Self {
        Self::new(
            &platform.os().to_string(),
            &platform.architecture().to_string(),
            platform.variant().as_deref().unwrap_or_default(),
        )
    }

    pub fn os(&self) -> &str {
        &self.os
    }

    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Whether an image of another platform runs on a machine of this one.
    pub(crate) fn can_run(&self, image: &Self) -> bool {
        self.runs().contains(image)
    }

    /// What a machine of this platform can run, best first: older variants, and the 32-bit
    /// architecture that a 64-bit one includes.
    fn runs(&self) -> Vec<Self> {
        let like = |architecture: &str, variant: String| Self {
            os: self.os.clone(),
            architecture: architecture.to_owned(),
            variant,
        };
        let older = |architecture: &str, from: u32, to: u32| -> Vec<Self> {
            let versions = (to..from).rev();
            versions
                .map(|version| like(architecture, format!("v{version}")))
                .collect()
        };
        let mut all = vec![self.clone()];
        match self.architecture.as_str() {
            "amd64" => {
                let version = self.variant_number().unwrap_or(1);
                all.extend(older("amd64", version, 2));
                if version > 1 {
                    all.push(like("amd64", String::new()));
                }
                all.push(like("386", String::new()));
            }
            "arm" => all.extend(older("arm", self.variant_number().unwrap_or(7), 5)),
            "arm64" => {
                if !self.variant.is_empty() {
                    all.push(like("arm64", String::new()));
                }
                all.extend(older("arm", 9, 5));
            }
            _ => {}
        }
        all
    }

    /// The number in `v3`.
    fn variant_number(&self) -> Option<u32> {
        self.variant.strip_prefix('v')?.parse().ok()
    }
}

/// The manifest (or the index within) that suits a platform best.
///
/// # Errors
/// [`Error::NoPlatform`], with what there is.
pub(crate) fn choose(
    image: &str,
    index: &ImageIndex,
    platform: &Platform,
) -> Result<Descriptor, Error> {
    let listed: Vec<(&Descriptor, Option<Platform>)> = index
        .manifests()
        .iter()
        .filter(|descriptor| Kind::of(descriptor).is_some())
        .map(|descriptor| (descriptor, descriptor.platform().as_ref().map(Platform::of)))
        .collect();
    // Only an index of one image may leave the platform out.
    if let [(descriptor, None)] = listed[..] {
        return Ok(descriptor.clone());
    }
    for wanted in platform.runs() {
        let mut suits = listed.iter();
        if let Some((descriptor, _)) = suits.find(|(_, found)| found.as_ref() == Some(&wanted)) {
            return Ok((*descriptor).clone());
        }
    }
    let mut found: Vec<String> = listed
        .iter()
        .filter_map(|(_, platform)| platform.as_ref())
        // Attestations, which belong to other manifests of the index.
        .filter(|platform| platform.os != "unknown")
        .map(Platform::to_string)
        .collect();
    found.sort();
    found.dedup();
    Err(Error::NoPlatform {
        image: image.to_owned(),
        wanted: platform.to_string(),
        found: match found.is_empty() {
            true => "nothing".to_owned(),
            false => found.join(", "),
        },
    })
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.is_empty() {
            true => Ok(()),
            false => write!(f, "/{}", self.variant),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let plain = |part: &&str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            !part.is_empty() && part.chars().all(allowed)
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            _ if !parts.iter().all(plain) => Err(PlatformError(text.to_owned())),
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    /// What `wanted` gets from an index of these platforms, each named by its digest's content.
    fn chosen(wanted: &str, listed: &[&str]) -> Option<String> {
        let manifests: Vec<serde_json::Value> = listed
            .iter()
            .map(|text| {
                let mut descriptor = serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": Digest::of(text.as_bytes()),
                    "size": 1,
                });
                let parts: Vec<&str> = text.split('/').collect();
                if let [os, architecture, variant @ ..] = &parts[..] {
                    descriptor["platform"] =
                        serde_json::json!({"os": os, "architecture": architecture});
                    if let [variant] = variant {
                        descriptor["platform"]["variant"] = (*variant).into();
                    }
                }
                descriptor
            })
            .collect();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        let index: ImageIndex = serde_json::from_value(index).unwrap();
        let found = choose("x", &index, &wanted.parse().unwrap()).ok()?;
        let named = listed
            .iter()
            .find(|text| found.digest().to_string() == Digest::of(text.as_bytes()).to_string());
        named.map(|text| (*text).to_owned())
    }

    #[test]
    fn the_best_variant_that_a_machine_runs_is_chosen() {
        let arm = ["linux/arm/v5", "linux/arm/v7", "linux/arm64/v8"];
        for (wanted, listed, expected) in [
            ("linux/arm64", &arm[..], Some("linux/arm64/v8")),
            ("linux/arm64/v8", &arm, Some("linux/arm64/v8")),
            ("linux/arm64", &arm[..2], Some("linux/arm/v7")),
            ("linux/arm", &arm, Some("linux/arm/v7")),
            ("linux/arm/v6", &arm, Some("linux/arm/v5")),
            ("linux/amd64", &arm, None),
            (
                "linux/amd64",
                &["linux/amd64/v2", "linux/amd64"],
                Some("linux/amd64"),
            ),
            ("linux/amd64", &["linux/amd64/v3"], None),
            (
                "linux/amd64/v3",
                &["linux/386", "linux/amd64", "linux/amd64/v2"],
                Some("linux/amd64/v2"),
            ),
            ("linux/x86_64", &["linux/386"], Some("linux/386")),
            ("linux/amd64", &["windows/amd64", "unknown/unknown"], None),
            ("linux/s390x", &["linux/s390x"], Some("linux/s390x")),
            ("linux/amd64", &["nothing said"], Some("nothing said")),
            ("linux/amd64", &["nothing said", "linux/arm64"], None),
        ] {
            assert_eq!(
                chosen(wanted, listed).as_deref(),
                expected,
                "{wanted} of {listed:?}"
            );
        }
    }

    #[test]
    fn what_names_no_platform_is_refused() {
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/arm/v7/x",
            "linux/a b",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        let text = |text: &str| text.parse::<Platform>().unwrap().to_string();
        assert_eq!(text("Linux/aarch64/v8"), "linux/arm64");
        assert_eq!(text("linux/arm"), "linux/arm/v7");
    }
}
