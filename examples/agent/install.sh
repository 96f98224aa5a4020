#!/bin/sh
# Puts ssm-proxy-agent on an instance through SSM alone, and starts it:
#   examples/agent/install.sh INSTANCE_ID BUCKET [PATH_TO_AGENT_BINARY]
# BUCKET is an S3 bucket you may write to. The instance fetches the binary from there by a link that is good for
# 15 minutes, so it needs curl and a way to S3, but no right of its own. Run it again to upgrade.
set -eu
usage="usage: install.sh INSTANCE_ID BUCKET [PATH_TO_AGENT_BINARY]"
instance=${1:?$usage}
bucket=${2:?$usage}
binary=${3:-target/x86_64-unknown-linux-musl/agent/ssm-proxy-agent}
unit=$(dirname "$0")/ssm-proxy-agent.service
object=s3://$bucket/ssm-proxy-agent

[ -f "$binary" ] || { echo "error: no agent at $binary; the README says how to build it" >&2; exit 1; }
sum=$(sha256sum "$binary" | cut -d ' ' -f 1)
unit=$(base64 <"$unit" | tr -d '\n')

# The instance's own settings, all of them harmless to other programs: any user may send pings (the default of
# systemd's newer releases), and a local port may be used again a second after its connection ended, so that an
# application can connect more than 28,000 times a minute to one target.
settings=$(base64 <<'CONF' | tr -d '\n'
net.ipv4.ping_group_range = 0 2147483647
net.ipv4.tcp_tw_reuse = 1
CONF
)

aws s3 cp "$binary" "$object"
trap 'aws s3 rm "$object"' EXIT
link=$(aws s3 presign "$object" --expires-in 900)

# Single quotes hold for the instance's shell; neither the link nor the rest has any.
id=$(aws ssm send-command --instance-ids "$instance" --document-name AWS-RunShellScript \
    --comment "install ssm-proxy-agent" --query Command.CommandId --output text --parameters "$(
        cat <<JSON
{"commands": [
  "set -eu",
  "cd \"\$(mktemp -d)\"",
  "curl -fsS -o ssm-proxy-agent '$link'",
  "echo '$sum  ssm-proxy-agent' | sha256sum -c -",
  "install -m 0755 ssm-proxy-agent /usr/local/bin/ssm-proxy-agent",
  "echo '$unit' | base64 -d >/etc/systemd/system/ssm-proxy-agent.service",
  "echo '$settings' | base64 -d >/etc/sysctl.d/60-ssm-proxy-agent.conf",
  "sysctl -q -p /etc/sysctl.d/60-ssm-proxy-agent.conf",
  "systemctl daemon-reload",
  "systemctl enable ssm-proxy-agent",
  "systemctl restart ssm-proxy-agent",
  "sleep 1",
  "systemctl --no-pager --lines=5 status ssm-proxy-agent"
]}
JSON
    )")

if aws ssm wait command-executed --command-id "$id" --instance-id "$instance"; then
    done=0
else
    done=1
fi
aws ssm get-command-invocation --command-id "$id" --instance-id "$instance" --output text \
    --query '[StandardOutputContent, StandardErrorContent]'
[ "$done" = 0 ] || { echo "error: the agent was not installed on $instance; see above" >&2; exit 1; }
echo "ssm-proxy-agent runs on $instance"
