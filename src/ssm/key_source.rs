//! Pure: where the AWS keys come from, and so what renews them when they have expired.

use super::profiles::{credential, setting};

/// The order is the SDK's: the environment, then the profile with those that it names as its source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum KeySource {
    /// An instance's role, a token of a cluster, or nothing that the files tell.
    #[default]
    Unknown,
    Environment,
    /// `aws sso login` of this profile.
    SignOn(String),
    /// `aws login` of this profile.
    Login(String),
    /// The program that this profile names.
    Process(String),
    /// Keys that stand in the files.
    Profile(String),
}

impl KeySource {
    /// Of `profile` in the two files' texts.
    pub(super) fn of(profile: &str, in_environment: bool, config: &str, credentials: &str) -> Self {
        if in_environment {
            return Self::Environment;
        }
        let mut profile = profile.to_owned();
        for _ in 0..MOST_SOURCES {
            let says =
                |key| setting(config, &profile, key).or_else(|| credential(credentials, &profile, key));
            match says("source_profile").filter(|source| *source != profile) {
                Some(source) => profile = source.to_owned(),
                None if says("credential_source") == Some("Environment") => return Self::Environment,
                None if says("sso_session").or_else(|| says("sso_start_url")).is_some() => {
                    return Self::SignOn(profile);
                }
                None if says("login_session").is_some() => return Self::Login(profile),
                None if says("credential_process").is_some() => return Self::Process(profile),
                None if says("aws_access_key_id").is_some() => return Self::Profile(profile),
                None => return Self::Unknown,
            }
        }
        Self::Unknown
    }

    /// What has expired, where the session is one of `profile`.
    pub(super) fn expired(&self, profile: &str) -> String {
        match self {
            Self::Environment => "the AWS keys in the environment have expired".to_owned(),
            Self::Profile(of) => format!("the AWS keys of profile {of} have expired"),
            Self::Process(of) => {
                format!("the AWS keys that the credential_process of profile {of} gives have expired")
            }
            Self::Unknown | Self::SignOn(_) | Self::Login(_) => {
                format!("the AWS login of profile {profile} has expired or is missing")
            }
        }
    }

    /// What to do then.
    pub(super) fn renewal(&self, profile: &str) -> String {
        match self {
            Self::Environment => {
                "set fresh AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN and start \
                                  again, or unset them: they come before every profile"
                    .to_owned()
            }
            Self::Profile(of) => {
                format!("put fresh keys, with their aws_session_token, under [{of}] in ~/.aws/credentials")
            }
            Self::Process(of) => format!("log in to what the credential_process of profile {of} asks"),
            Self::SignOn(of) => format!("aws sso login --profile {of}"),
            Self::Login(of) => format!("aws login --profile {of}"),
            Self::Unknown => {
                format!("renew the keys of profile {profile}: aws sso login --profile {profile}")
            }
        }
    }
}

/// Profiles that name each other are more than one would write.
const MOST_SOURCES: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_found_as_the_sdk_finds_it() {
        let config = "\
[sso-session corp]
sso_start_url = https://corp
[profile signed-on]
sso_session = corp
[profile older]
sso_start_url = https://corp
[profile role]
role_arn = arn
source_profile = signed-on
[profile of-keys]
role_arn = arn
source_profile = keys
[profile process]
credential_process = /bin/keys
[profile console]
login_session = arn
[profile borrowed]
role_arn = arn
credential_source = Environment
[profile ring]
source_profile = gnir
[profile gnir]
source_profile = ring
[profile inline]
aws_access_key_id = AKIA
";
        let credentials =
            "[keys]\naws_access_key_id = ASIA\naws_session_token = t\n[default]\naws_access_key_id=A\n";
        let source = |profile: &str| KeySource::of(profile, false, config, credentials);

        assert_eq!(source("signed-on"), KeySource::SignOn("signed-on".into()));
        assert_eq!(source("older"), KeySource::SignOn("older".into()));
        assert_eq!(source("role"), KeySource::SignOn("signed-on".into()), "who must log in");
        assert_eq!(source("of-keys"), KeySource::Profile("keys".into()));
        assert_eq!(source("process"), KeySource::Process("process".into()));
        assert_eq!(source("console"), KeySource::Login("console".into()));
        assert_eq!(source("borrowed"), KeySource::Environment);
        assert_eq!(source("inline"), KeySource::Profile("inline".into()));
        assert_eq!(source("default"), KeySource::Profile("default".into()));
        assert_eq!(source("ring"), KeySource::Unknown);
        assert_eq!(source("absent"), KeySource::Unknown);
        assert_eq!(KeySource::of("signed-on", true, config, credentials), KeySource::Environment);
    }

    #[test]
    fn only_a_login_is_renewed_by_a_login() {
        let renewal = |source: KeySource| source.renewal("dev");
        assert_eq!(renewal(KeySource::SignOn("corp".into())), "aws sso login --profile corp");
        assert_eq!(renewal(KeySource::Login("dev".into())), "aws login --profile dev");
        for keys in [KeySource::Environment, KeySource::Profile("a".into()), KeySource::Process("a".into())] {
            assert!(!keys.renewal("dev").contains("aws "), "{keys:?}");
            assert!(!keys.expired("dev").contains("login"), "{keys:?}");
        }
    }
}
