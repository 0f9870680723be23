//! Values as people type them: lengths of time and sizes.

use std::time::Duration;

/// Smallest and largest ring buffer, bytes: a page, and what an event's position can count.
const BUFFER: std::ops::RangeInclusive<u64> = 4096..=1 << 30;
/// Bytes that a plain number stands for.
const MEBIBYTE: u64 = 1 << 20;

/// A length of time above zero: `30s`, `1m 30s`, `500ms`; a plain number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text)
            .map_err(|error| format!("{error}; examples: 30s, 1m30s, 500ms"))?,
    };
    if parsed.is_zero() {
        return Err("more than nothing is needed; examples: 30s, 1m30s, 500ms".into());
    }
    Ok(parsed)
}

/// Name of a namespace, as Kubernetes takes one (RFC 1123 label).
pub(super) fn label(text: &str) -> Result<String, String> {
    let is_inner = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let fits = (1..=63).contains(&text.len())
        && text.starts_with(is_inner)
        && text.ends_with(is_inner)
        && text.chars().all(|letter| is_inner(letter) || letter == '-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err("small letters, digits and '-' between them, 63 at most".into())
    }
}

/// A path from the root.
pub(super) fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("it has to begin with /".into())
    }
}

/// Bytes: `500M`, `2G`, all by 1024; a plain number is MiB.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    parse_size::Config::new()
        .with_binary()
        .with_default_factor(MEBIBYTE)
        .parse_size(text)
        .map_err(|error| format!("{error}; examples: 512K, 8M, 64MiB"))
}

/// Bytes of a ring buffer: `512K`, `8M`, `1GiB`, all by 1024; a plain number is MiB. Rounded up to the
/// power of two that the kernel asks for.
pub(super) fn buffer(text: &str) -> Result<u32, String> {
    Some(bytes(text)?)
        .filter(|bytes| BUFFER.contains(bytes))
        .and_then(|bytes| u32::try_from(bytes.next_power_of_two()).ok())
        .ok_or_else(|| "a size from 4K to 1G is needed".into())
}

/// The minor version of Kubernetes 1: `1.30`, `v1.31.2`, `1.29+`.
pub(super) fn kubernetes(text: &str) -> Result<u16, String> {
    let rest = text.trim_start_matches('v').strip_prefix("1.");
    let minor = rest.and_then(|rest| rest.split('.').next());
    minor
        .and_then(|minor| minor.trim_end_matches('+').parse().ok())
        .ok_or_else(|| "a version such as 1.30 is needed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_type_them() {
        for (text, milliseconds) in [("30", 30_000), ("1m 30s", 90_000), ("250ms", 250)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for wrong in ["", "0", "0s", "-1", "5 parsecs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_of_namespaces_as_kubernetes_takes_them() {
        for right in ["kube-system", "a", "0x"] {
            assert_eq!(label(right), Ok(right.to_owned()));
        }
        for wrong in ["", "a: b", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(label(wrong).is_err(), "{wrong}");
        }
        assert!(absolute("var/tracer").is_err() && absolute("/var/tracer").is_ok());
    }

    #[test]
    fn versions_of_kubernetes_as_it_says_them() {
        for (text, minor) in [
            ("1.20", 20),
            ("v1.31.2", 31),
            ("1.29+", 29),
            ("v1.30.1-eks", 30),
        ] {
            assert_eq!(kubernetes(text), Ok(minor), "{text}");
        }
        for wrong in ["", "1", "2.1", "1.", "new"] {
            assert!(kubernetes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_rounded_up_to_a_power_of_two() {
        for (text, bytes) in [
            ("8", 8 << 20),
            ("8M", 8 << 20),
            ("8MiB", 8 << 20),
            ("5 MB", 8 << 20),
            ("512k", 512 << 10),
            ("1G", 1 << 30),
        ] {
            assert_eq!(buffer(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "1K", "2G", "much", "-8M"] {
            assert!(buffer(wrong).is_err(), "{wrong}");
        }
    }
}
