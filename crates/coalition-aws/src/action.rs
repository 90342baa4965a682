//! What the client can ask, in one list: the permissions an operator grants are compared with it.

/// An API of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Machines and their disks; the Query protocol.
    Ec2,
    /// Who the credentials belong to; the Query protocol.
    Sts,
    /// Limits of the account; JSON.
    ServiceQuotas,
    /// What AWS counts of machines; JSON.
    CloudWatch,
}

impl Service {
    /// Name in signatures and host names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Sts => "sts",
            Self::ServiceQuotas => "servicequotas",
            Self::CloudWatch => "monitoring",
        }
    }

    /// Name in permissions.
    const fn permission(self) -> &'static str {
        match self {
            Self::CloudWatch => "cloudwatch",
            other => other.name(),
        }
    }

    /// What bodies of its JSON are declared as.
    pub(crate) const fn json(self) -> &'static str {
        match self {
            Self::CloudWatch => "application/x-amz-json-1.0",
            _ => "application/x-amz-json-1.1",
        }
    }

    /// Version of the API the requests are written for.
    #[must_use]
    pub(crate) const fn version(self) -> &'static str {
        match self {
            Self::Ec2 => "2016-11-15",
            Self::Sts => "2011-06-15",
            Self::ServiceQuotas => "ServiceQuotasV20190624",
            Self::CloudWatch => "GraniteServiceVersion20100801",
        }
    }
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Action {
    RunInstances,
    DescribeInstances,
    TerminateInstances,
    DescribeVolumes,
    DeleteVolume,
    GetConsoleOutput,
    DescribeInstanceTypes,
    DescribeImages,
    GetCallerIdentity,
    GetServiceQuota,
    GetMetricData,
}

impl Action {
    /// Every call the client can make.
    pub const ALL: [Self; 11] = [
        Self::RunInstances,
        Self::DescribeInstances,
        Self::TerminateInstances,
        Self::DescribeVolumes,
        Self::DeleteVolume,
        Self::GetConsoleOutput,
        Self::DescribeInstanceTypes,
        Self::DescribeImages,
        Self::GetCallerIdentity,
        Self::GetServiceQuota,
        Self::GetMetricData,
    ];

    /// Its name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RunInstances => "RunInstances",
            Self::DescribeInstances => "DescribeInstances",
            Self::TerminateInstances => "TerminateInstances",
            Self::DescribeVolumes => "DescribeVolumes",
            Self::DeleteVolume => "DeleteVolume",
            Self::GetConsoleOutput => "GetConsoleOutput",
            Self::DescribeInstanceTypes => "DescribeInstanceTypes",
            Self::DescribeImages => "DescribeImages",
            Self::GetCallerIdentity => "GetCallerIdentity",
            Self::GetServiceQuota => "GetServiceQuota",
            Self::GetMetricData => "GetMetricData",
        }
    }

    /// The API it belongs to.
    #[must_use]
    pub const fn service(self) -> Service {
        match self {
            Self::GetCallerIdentity => Service::Sts,
            Self::GetServiceQuota => Service::ServiceQuotas,
            Self::GetMetricData => Service::CloudWatch,
            _ => Service::Ec2,
        }
    }

    /// Whether doing it twice is the same as doing it once, so that the client may repeat it by itself.
    #[must_use]
    pub const fn is_repeatable(self) -> bool {
        !matches!(self, Self::RunInstances)
    }

    /// The permissions it needs, as IAM names them. Making a machine also writes its tags.
    #[must_use]
    pub fn permissions(self) -> Vec<String> {
        let own = format!("{}:{}", self.service().permission(), self.name());
        match self {
            // Everybody may ask who they are.
            Self::GetCallerIdentity => Vec::new(),
            Self::RunInstances => vec![own, "ec2:CreateTags".into()],
            _ => vec![own],
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
