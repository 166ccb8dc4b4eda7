import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { parseAddress, specialKind } from '../lib/addresses.ts'
import { hostName } from './names.ts'

/** Package registries, proxies and certificate authorities as this host is set up, fit to be used by strangers. */
export interface CarriedSettings {
  /** Where programs inside may go, wherever their addresses lie. */
  names: { name: string; ports: number[] }[]
  /** The same for what is named by its address: entries of an allow list. */
  addresses: string[]
  /** For programs inside. No value has a credential in it. */
  env: Record<string, string>
  /** Settings of which the credential was left behind, for people. */
  withoutCredential: string[]
  /** With credentials, for installations of builds alone. */
  installations: InstallationSettings
}

export interface InstallationSettings {
  env: Record<string, string>
  /** Content of an npmrc of the user; '' for none. */
  npmrc: string
  /** Every credential in them, for logs to leave out. */
  secrets: string[]
}

export interface SettingSources {
  env: Record<string, string | undefined>
  home: string
  /** '/' but in tests. */
  root: string
}

/** What the package managers use when nothing is set. */
const usualRegistries = [
  'https://registry.npmjs.org/',
  'https://pypi.org/',
  'https://files.pythonhosted.org/',
]
const fileBytesMax = 256 * 1024
const sourceFilesMax = 100
const namesMax = 100

/** The directories of certificate bundles, which the host image has too; what lies elsewhere is not there inside. */
const certificateDirs = ['/etc/ssl/certs/', '/etc/pki/', '/etc/ca-certificates/']
const certificateVariables = [
  'NODE_EXTRA_CA_CERTS',
  'SSL_CERT_FILE',
  'SSL_CERT_DIR',
  'REQUESTS_CA_BUNDLE',
  'CURL_CA_BUNDLE',
  'GIT_SSL_CAINFO',
  'PIP_CERT',
]
const npmCredential =
  /^\s*(\/\/[^=\s]+):(_authToken|_auth|_password|username|email)\s*=\s*["']?(.*?)["']?\s*$/
const loopbackPlace = /^\/\/(?:localhost|127(?:\.\d+){3}|\[::1\])((?::\d+)?\/)/
const proxyVariables = ['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY']
const proxyExceptionsDefault = 'localhost,127.0.0.1,::1,.internal'

/** Reads the settings of npm, pip, apt and the environment; what cannot be read is as not set. */
export function hostRegistries(sources: Partial<SettingSources> = {}): CarriedSettings {
  const reader = new SettingsReader({ env: process.env, home: homedir(), root: '/', ...sources })
  reader.read()
  return reader.settings
}

class SettingsReader {
  readonly settings: CarriedSettings = {
    names: [],
    addresses: [],
    env: {},
    withoutCredential: [],
    installations: { env: {}, npmrc: '', secrets: [] },
  }
  readonly #sources: SettingSources

  constructor(sources: SettingSources) {
    this.#sources = sources
  }

  read(): void {
    for (const url of usualRegistries) this.#reach('', url)
    this.#readNpm()
    this.#readPip()
    this.#readApt()
    this.#readProxies()
    this.#readCertificates()
  }

  #readNpm(): void {
    const files = [...this.#globalNpmConfigs(), join(this.#sources.home, '.npmrc')]
    this.#readNpmCredentials(files)
    const values = new Map<string, string>()
    for (const file of files) for (const [key, value] of assignments(this.#text(file))) values.set(key, value)
    for (const [variable, value] of Object.entries(this.#sources.env)) {
      if (/^npm_config_/i.test(variable) && value)
        values.set(variable.slice(11).toLowerCase().replaceAll('_', '-'), value)
    }
    for (const [key, value] of values) {
      if (key === 'registry' || key.endsWith(':registry')) {
        const url = this.#reach(`npm ${key}`, value)
        if (url !== null) this.#keepNpmCredential(url, value)
        if (key === 'registry' && url !== null) {
          this.#set('NPM_CONFIG_REGISTRY', url)
          this.settings.installations.env.YARN_NPM_REGISTRY_SERVER = url
        } else if (url !== null) this.settings.installations.npmrc += `${key}=${url}\n`
      } else if (key === 'cafile') {
        this.#setCertificate('NPM_CONFIG_CAFILE', value)
      } else if (key === 'proxy' || key === 'https-proxy') {
        const url = this.#reach(`npm ${key}`, value)
        if (url !== null) this.#set(key === 'proxy' ? 'NPM_CONFIG_PROXY' : 'NPM_CONFIG_HTTPS_PROXY', url)
      }
    }
  }

  /** `//host/:_authToken=...` and the like, whose keys have cases that count. */
  #readNpmCredentials(files: string[]): void {
    const lines = files.flatMap((file) => this.#text(file).split('\n'))
    for (const [variable, value] of Object.entries(this.#sources.env))
      if (/^npm_config_\/\//i.test(variable)) lines.push(`${variable.slice('npm_config_'.length)}=${value}`)
    for (const line of lines) {
      const match = npmCredential.exec(line)
      if (!match) continue
      const [, place = '', key = '', written = ''] = match
      const value = written.replace(/\$\{(\w+)\}/g, (whole, name: string) => this.#sources.env[name] ?? whole)
      if (value === '' || value.includes('${')) continue
      const host = place.replace(loopbackPlace, `//${hostName}$1`)
      this.settings.installations.npmrc += `${host}:${key}=${value}\n`
      if (key !== 'username' && key !== 'email') this.settings.installations.secrets.push(value)
    }
  }

  /** One that stands in the address, in the form that npm sends. */
  #keepNpmCredential(reached: string, written: string): void {
    const url = new URL(this.#withCredential(reached, written))
    if (url.username === '') return
    const auth = btoa(`${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`)
    this.settings.installations.npmrc += `//${url.host}${url.pathname}:_auth=${auth}\n`
    this.settings.installations.secrets.push(auth)
  }

  /** Beside the npm that is found first. */
  #globalNpmConfigs(): string[] {
    const { env, root } = this.#sources
    const found = (env.PATH ?? '').split(':').find((dir) => dir !== '' && existsSync(join(root, dir, 'npm')))
    return found === undefined ? [] : [join(dirname(found), 'etc/npmrc')]
  }

  #readPip(): void {
    const { home, env } = this.#sources
    const values = new Map<string, string>()
    for (const file of ['/etc/pip.conf', join(home, '.config/pip/pip.conf'), join(home, '.pip/pip.conf')]) {
      for (const [key, value] of assignments(this.#text(file))) values.set(key, value)
    }
    for (const key of ['index-url', 'extra-index-url', 'proxy', 'trusted-host', 'cert']) {
      const value = env[`PIP_${key.toUpperCase().replaceAll('-', '_')}`]
      if (value) values.set(key, value)
    }
    for (const key of ['index-url', 'extra-index-url', 'proxy'] as const) {
      const urls = (values.get(key) ?? '').split(/\s+/).filter((word) => word !== '')
      const reached = urls.map((url) => this.#reach(`pip ${key}`, url)).filter((url) => url !== null)
      if (reached.length === 0) continue
      const name = key.toUpperCase().replaceAll('-', '_')
      this.#set(`PIP_${name}`, reached.join(' '))
      const whole = reached.map((url, index) => this.#withCredential(url, urls[index]!)).join(' ')
      const { env } = this.settings.installations
      env[`PIP_${name}`] = whole
      if (key !== 'proxy') env[`UV_${name}`] = whole
    }
    const trusted = values.get('trusted-host')
    if (trusted !== undefined && /^[\w.: -]+$/.test(trusted)) this.#set('PIP_TRUSTED_HOST', trusted)
    const certificate = values.get('cert')
    if (certificate !== undefined) this.#setCertificate('PIP_CERT', certificate)
  }

  /** The host image carries the lists themselves. */
  #readApt(): void {
    const lists = ['/etc/apt/sources.list', ...this.#files('/etc/apt/sources.list.d', /\.(list|sources)$/)]
    for (const file of lists) {
      for (const url of this.#text(file).match(/^\s*(?:deb(?:-src)?\s|URIs:).*$/gm) ?? []) {
        for (const word of url.split(/\s+/)) if (word.includes('://')) this.#reach('apt', word)
      }
    }
    for (const file of ['/etc/apt/apt.conf', ...this.#files('/etc/apt/apt.conf.d', /./)]) {
      for (const match of this.#text(file).matchAll(/^\s*Acquire::https?::Proxy\s+"([^"]+)"/gim)) {
        this.#reach('apt proxy', match[1] ?? '')
      }
    }
  }

  #readProxies(): void {
    const { env } = this.#sources
    let any = false
    for (const variable of proxyVariables) {
      const value = env[variable] || env[variable.toLowerCase()]
      const url = value ? this.#reach(variable, value) : null
      if (url === null) continue
      any = true
      // Programs do not agree on the spelling.
      this.#set(variable, url)
      this.#set(variable.toLowerCase(), url)
      const whole = this.#withCredential(url, value!)
      for (const name of [variable, variable.toLowerCase()]) this.settings.installations.env[name] = whole
    }
    if (!any) return
    const own = env.NO_PROXY || env.no_proxy
    const exceptions = own ? `${own},${proxyExceptionsDefault}` : proxyExceptionsDefault
    this.#set('NO_PROXY', exceptions)
    this.#set('no_proxy', exceptions)
  }

  #readCertificates(): void {
    for (const variable of certificateVariables) {
      const value = this.#sources.env[variable]
      if (value) this.#setCertificate(variable, value)
    }
  }

  /** The address without its credential, reachable from inside; null for what is none. */
  #reach(setting: string, text: string): string | null {
    const url = URL.parse(/^[a-z+]+:\/\//i.test(text) ? text : `http://${text}`)
    if (url === null || !/^(https?|socks5h?):$/.test(url.protocol) || text.includes('${')) return null
    if (url.username !== '' || url.password !== '') {
      this.settings.withoutCredential.push(setting)
      url.username = ''
      url.password = ''
    }
    url.search = ''
    url.hash = ''
    const port = url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port)
    const host = url.hostname.replace(/^\[|\]$/g, '')
    const address = parseAddress(host === 'localhost' ? '127.0.0.1' : host)
    if (address === null) {
      // apt follows to https, and back.
      const ports = url.port === '' ? [80, 443] : [port]
      if (this.settings.names.length < namesMax) this.settings.names.push({ name: host, ports })
    } else {
      this.settings.addresses.push(
        address.length === 4 ? `${address.join('.')}:${port}` : `[${host}]:${port}`,
      )
      if (specialKind(address) === 'loopback') url.hostname = hostName
    }
    return url.href
  }

  /** The address as it is reached from inside, with the credential that stood in it. */
  #withCredential(reached: string, written: string): string {
    const from = URL.parse(written)
    const url = new URL(reached)
    if (from === null || from.username === '') return reached
    url.username = from.username
    url.password = from.password
    const secret = from.password || from.username
    this.settings.installations.secrets.push(secret, decodeURIComponent(secret))
    return url.href
  }

  #set(variable: string, value: string): void {
    this.settings.env[variable] = value
  }

  #setCertificate(variable: string, path: string): void {
    const inside = certificateDirs.some((dir) => `${path}/`.startsWith(dir)) && !path.includes('..')
    if (inside && existsSync(join(this.#sources.root, path))) this.#set(variable, path)
  }

  #files(dir: string, pattern: RegExp): string[] {
    try {
      const names = readdirSync(join(this.#sources.root, dir)).filter((name) => pattern.test(name))
      return names
        .sort()
        .slice(0, sourceFilesMax)
        .map((name) => join(dir, name))
    } catch {
      return []
    }
  }

  #text(path: string): string {
    try {
      return readFileSync(join(this.#sources.root, path), 'utf8').slice(0, fileBytesMax)
    } catch {
      return ''
    }
  }
}

/** `key = value` lines of ini files; sections mean nothing here. */
function* assignments(text: string): Generator<[string, string]> {
  for (const line of text.split('\n')) {
    const match = /^\s*([^#;=\s][^=]*?)\s*=\s*(.*?)\s*$/.exec(line)
    if (match) yield [match[1]!.replaceAll('_', '-').toLowerCase(), match[2]!.replace(/^["']|["']$/g, '')]
  }
}
