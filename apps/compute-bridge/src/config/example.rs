//! The commented example that `compute-bridge example-config` prints. A test parses it.

/// An example boot file, every key with its default or a plausible value.
pub const EXAMPLE: &str = r##"# compute-bridge boot file. `compute-bridge check bridge.toml` checks everything in it, hosts included.
# Relative paths are relative to this file. Unknown keys are errors.

# The coalition's published config: a file in its hex or TOML form, or the hex itself.
coalition = "coalition.hex"
# The fingerprint you expect it to have (from the coalition's handshake page; `coalition id FILE` prints it).
fingerprint = "0000000000000000000000000000000000000000000000000000000000000000"

# The relay every node keeps a connection to, and peers to start from (the committees' members).
relay = "http://127.0.0.1:3340/"
bootstrap = []
# listen = "0.0.0.0:4100"       # UDP; without it everything goes through the relay
# network_id = "…"              # only when the coalition runs on a network of its own instead of the shared universe

# The bridge's one identity: network peer and signer of its cards and logs. Made on first start, mode 600. Back it up.
key_file = "bridge.key"
# Journal, image cache and lock. One bridge per directory.
data_dir = "bridge-data"
# Tickets issued to that key, where the market admits by ticket; read again whenever they are shown.
# tickets = ["market.ticket"]

[provider]
capacity_refresh_sec = 30       # the card is refreshed this often, and at once when capacity changes
max_concurrent_grants = 64      # worked on at once; further ones wait
max_image_mib = 4096            # larger images are refused
image_cache_mib = 16384         # images kept here, least recently used go first
default_disk_mib = 1024         # for workloads that name no disk size
max_disk_mib = 16384
pids_max = 1024                 # processes and threads of one workload
open_timeout_sec = 30           # the unseal committee's time to release an envelope
image_timeout_sec = 600         # one transfer of an image
start_timeout_sec = 60          # from start to SSH answering
watch_interval_sec = 2          # between two looks at a running workload
orphan_grace_sec = 30           # an instance no live grant explains is destroyed after this
inventory_interval_sec = 600    # "inventory = open grants" is signed and committed this often
order = "declared"              # after the reserved offer: "declared", "cheapest", "least_loaded", "fastest"
on_shutdown = "keep"            # "keep": grants run on and are taken up again; "drain": they are stopped and logged

# What you charge, in USD per hour: exact decimals, in quotes.
[provider.rates.baremetal]
core_hour = "0.04"
gib_hour = "0.005"

# One section per machine, 1 to 16. Each is one offer on your card.
[[baremetal.machines]]
name = "rack-01"                # optional; keep it while grants run
host = "10.0.1.5"
port = 22
user = "root"                   # an ordinary user works, with weaker isolation (stated on every receipt)
ssh_key_path = "rack-01.key"    # private key, mode 600
# The one host key it may show: /etc/ssh/ssh_host_ed25519_key.pub on the host, or `ssh-keyscan -t ed25519 HOST`.
host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIJgRJ+IUjEoNrcsjYAWAXmgBUE/rBPwxTRdcGe4jBh5"
region = "home-01"
cpu_millicores = 32000          # what you sell of it, in thousandths of a core
ram_mib = 131072
max_instances = 64
tdx_capable = false             # this version cannot start workloads inside TDX (guest_mrtd is for development)
minimum_isolation = "process_limits"  # or "user_namespaces", "root_namespaces": refuse hosts that offer less
egress = "none"                 # or rules: where workloads may connect to; docs/OPERATORS.md, where workloads may connect to
# egress = ["public:443", "*.debian.org:80", "10.0.7.0/24:5432", "1.1.1.1:53/udp"]
# network_mbit = 100                   # most that one workload sends and receives together, millions of bits a second
# isolation = "machine"         # a virtual machine for every workload; docs/OPERATORS.md says what the host needs
# machine = { kernel = "/boot/vmlinuz-6.1.0-cloud-amd64", modules = "/lib/modules/6.1.0-cloud-amd64", overhead_mib = 288 }
# public_host = "rack-01.example.net"  # where requesters reach workloads; `host` when absent
# listen = "0.0.0.0"                   # where workloads' SSH servers listen
# dir = ".coalition-host"              # on the host, relative to the login's home

# One section per region of AWS; each is one offer. See docs/OPERATORS.md for the permissions it needs.
# [[aws]]
# name = "aws-fra"                       # keep it while grants run: instances are found by it
# region = "eu-central-1"                # as the market calls it; `aws_region` when AWS calls it otherwise
# credentials_file = "aws.credentials"   # as AWS's tools write it, mode 600; the environment's keys when absent
# profile = "default"
# image = "ami-0123456789abcdef0"        # Linux with cloud-init, systemd, OpenSSH, for the architecture of this program
# subnets = ["subnet-0123456789abcdef0"] # the next is tried when one has no room
# security_groups = ["sg-0123456789abcdef0"]  # SSH and the local port range open to bridge and requesters
# max_instances = 4
# rates = { core_hour = "0.09", gib_hour = "0.01" }  # what you charge, unless [provider.rates.aws] says it
# [[aws.sizes]]                          # the cheapest that a grant fits on is taken
# size = "m6a.large"
# cpu_millicores = 2000
# ram_mib = 7680                         # the host itself needs a little
# price_hour = "0.1035"                  # what AWS charges you, disk and address included
# confidential = "sev_snp"               # asks for AMD SEV-SNP (m6a, c6a, r6a); AWS has no Intel TDX

# One section per region of Google Cloud.
# [[gcp]]
# name = "gcp-ams"
# region = "europe-west4"                # as the market calls it; `gcp_region` when Google calls it otherwise
# project = "my-project"
# zones = ["europe-west4-a"]             # the next is tried when one has no room
# credentials_file = "gcp.json"          # a service account's key, mode 600; the machine's own service account when absent
# image = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"  # needs cloud-init
# subnetwork = "hosts"
# network_tags = ["coalition-host"]      # firewall rules open SSH and the local port range for them
# disk_type = "pd-balanced"
# max_instances = 4
# rates = { core_hour = "0.08", gib_hour = "0.01" }
# [[gcp.sizes]]
# size = "n2d-standard-2"
# cpu_millicores = 2000
# ram_mib = 7680
# price_hour = "0.0927"
# confidential = "sev_snp"               # n2d; "tdx" on c3-standard

# One section per region of Azure.
# [[azure]]
# name = "azure-ams"
# region = "westeurope"                  # as the market calls it; `azure_region` when Azure calls it otherwise
# subscription = "00000000-0000-0000-0000-000000000000"
# resource_group = "coalition-hosts"     # best one for this bridge alone
# zones = ["any"]
# tenant = "00000000-0000-0000-0000-000000000001"  # with client and client_secret_file; without: the machine's own identity
# client = "00000000-0000-0000-0000-000000000002"
# client_secret_file = "azure.secret"    # mode 600
# image = "Debian:debian-12:12-gen2:0.20251006.2257"  # or a gallery's version; never "latest"
# subnet = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/net/providers/Microsoft.Network/virtualNetworks/n/subnets/hosts"
# max_instances = 4
# rates = { core_hour = "0.08", gib_hour = "0.01" }
# [[azure.sizes]]
# size = "Standard_DC2as_v5"
# cpu_millicores = 2000
# ram_mib = 7680
# price_hour = "0.0980"
# confidential = "sev_snp"               # DCas, ECas; "tdx" on DCes, ECes

# How the bridge proves what it runs on, where the market asks for it. Without this section it is a plain host.
# [attestation]
# source = "tdx"                # the TDX guest the bridge runs in
# collateral_dir = "collateral" # the platform's collateral, <fmspc>-<ca>.json

[dashboard]                     # on 127.0.0.1 only
port = 8080
token_file = "dashboard.token"  # bearer token, mode 600; made on first start
"##;
