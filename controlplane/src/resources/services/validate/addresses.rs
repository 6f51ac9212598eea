//! The addresses of a Service: its own, their families, and those that others have for it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::super::is_headless;
use crate::resources::FieldError;
use crate::resources::error::{duplicate, invalid, not_supported};
use crate::resources::object::{at, list, text};

const NO_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// `clusterIP`, `clusterIPs`, and the address families, which have to agree.
pub(super) fn cluster_addresses(service: &Value) -> Vec<FieldError> {
    let mut errors = families(service);
    let addresses = at(service, "spec.clusterIPs");
    let first = text(service, "spec.clusterIP");
    let all = list(service, "spec.clusterIPs");
    if let Some(given) = all.first()
        && given != first
    {
        let why = "first value must match `clusterIP`";
        errors.push(invalid("spec.clusterIPs", addresses, why));
    }
    if all.len() > 2 {
        errors.push(invalid(
            "spec.clusterIPs",
            addresses,
            "may only hold up to 2 values",
        ));
    }
    for (index, address) in all.iter().enumerate() {
        let path = format!("spec.clusterIPs[{index}]");
        let given = address.as_str().unwrap_or_default();
        if given == "None" {
            if all.len() > 1 {
                errors.push(invalid(
                    &path,
                    address,
                    "'None' must be the first and only value",
                ));
            }
            continue;
        }
        match given.parse::<IpAddr>() {
            Err(_) => errors.push(invalid(&path, address, NO_ADDRESS)),
            Ok(parsed) => {
                let family = if parsed.is_ipv4() { "IPv4" } else { "IPv6" };
                let expected = list(service, "spec.ipFamilies").get(index);
                let expected = expected.and_then(Value::as_str).unwrap_or(family);
                if expected != family {
                    let why = format!(
                        "expected an {expected} value as indicated by `ipFamilies[{index}]`"
                    );
                    errors.push(invalid(&path, addresses, &why));
                }
            }
        }
    }
    if let [Some(one), Some(other)] = [0, 1].map(|n| {
        let given = all.get(n).and_then(Value::as_str);
        given.and_then(|text| text.parse::<IpAddr>().ok())
    }) && one.is_ipv4() == other.is_ipv4()
    {
        let why = "may specify no more than one IP for each IP family";
        errors.push(invalid("spec.clusterIPs", addresses, why));
    }
    errors
}

fn families(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = text(service, "spec.ipFamilyPolicy");
    let all = list(service, "spec.ipFamilies");
    if !matches!(
        policy,
        "" | "SingleStack" | "PreferDualStack" | "RequireDualStack"
    ) {
        let supported = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        errors.push(not_supported("spec.ipFamilyPolicy", policy, &supported));
    }
    let selects_nothing = at(service, "spec.selector")
        .as_object()
        .is_none_or(serde_json::Map::is_empty);
    // Addresses of both families can be listed by hand, whatever the cluster's own are.
    let by_hand = is_headless(service) && selects_nothing;
    if policy == "SingleStack" {
        for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if list(&service["spec"], field).len() == 2 {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.push(invalid("spec.ipFamilyPolicy", &policy.into(), &why));
            }
        }
    }
    if policy == "RequireDualStack" && !by_hand {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(invalid("spec.ipFamilyPolicy", &policy.into(), why));
    }
    let mut seen = BTreeSet::new();
    for (index, family) in all.iter().enumerate() {
        let path = format!("spec.ipFamilies[{index}]");
        let name = family.as_str().unwrap_or_default();
        if !matches!(name, "IPv4" | "IPv6") {
            errors.push(not_supported(&path, name, &["IPv4", "IPv6"]));
        } else if !seen.insert(name) {
            errors.push(duplicate(&path, family));
        } else if name == "IPv6" && !by_hand {
            errors.push(invalid(&path, family, "not configured on this cluster"));
        }
    }
    errors
}

pub(super) fn external_addresses(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, given) in list(service, "spec.externalIPs").iter().enumerate() {
        let path = format!("spec.externalIPs[{index}]");
        let fault = match given.as_str().unwrap_or_default().parse::<IpAddr>() {
            Err(_) => Some(NO_ADDRESS.to_string()),
            Ok(address) => special(address),
        };
        errors.extend(fault.map(|why| invalid(&path, given, &why)));
    }
    errors
}

/// Why nobody outside a host can have this address.
pub(crate) fn special(address: IpAddr) -> Option<String> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let link_multicast = match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    };
    let why = match address {
        _ if address.is_unspecified() => {
            return Some(format!("may not be unspecified ({address})"));
        }
        _ if address.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        _ if link_local => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        _ if link_multicast => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        }
        _ => return None,
    };
    Some(why.to_string())
}
