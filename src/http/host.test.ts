import { expect, test } from 'bun:test'
import { Hosts } from './host.ts'

test("a name of the platform, or below one of its domains, is nobody else's", () => {
  const hosts = new Hosts({
    listenHosts: ['agents.lan'],
    publicUrl: 'https://hutch.example:8443',
    domains: ['localhost', 'Sandboxes.example.'],
    trustedProxies: [],
  })
  const own = [
    ...['hutch.internal', 'host.hutch.internal', 'agents.lan', 'hutch.example'],
    ...['sandboxes.example', 'x.preview.sandboxes.example', 'a.sandboxes.example', 'x.localhost'],
  ]
  for (const name of own) expect([name, hosts.owns(name)]).toEqual([name, true])
  const others = ['app.hutch.example', 'sandboxes.example.org', 'mysandboxes.example', 'internal.example']
  for (const name of others) expect([name, hosts.owns(name)]).toEqual([name, false])
})
