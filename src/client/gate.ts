import { ClientError, Transport } from './transport.ts'

/** Getting a credential from a platform, where there is none yet. */

const clientId = 'hutch'
const deviceGrant = 'urn:ietf:params:oauth:grant-type:device_code'
/** Longer than any platform lets a code live. */
const approvalSecondsMax = 30 * 60
const intervalSecondsMin = 1

export interface DeviceLogin {
  userCode: string
  /** Where it is approved, with the code in it. */
  address: string
  deviceCode: string
  intervalSeconds: number
  expiresInSeconds: number
}

export interface AccessToken {
  accessToken: string
  /** Milliseconds since the epoch. */
  expiresAt: number
}

interface Grant {
  access_token: string
  expires_in: number
}

export class Gate {
  private readonly transport: Transport

  constructor(apiUrl: string) {
    // No credential is what it is for.
    this.transport = new Transport({ apiUrl, workspace: '', apiKey: '' })
  }

  async begin(): Promise<DeviceLogin> {
    const begun = await this.transport.json<{
      device_code: string
      user_code: string
      verification_uri_complete: string
      interval: number
      expires_in: number
    }>('POST', '/login/device', { client_id: clientId, scope: 'offline_access' })
    return {
      userCode: begun.user_code,
      address: begun.verification_uri_complete,
      deviceCode: begun.device_code,
      intervalSeconds: Math.max(begun.interval, intervalSecondsMin),
      expiresInSeconds: Math.min(begun.expires_in, approvalSecondsMax),
    }
  }

  /** Waits until somebody approved it. @throws ClientError once nobody did in time */
  async approval(login: DeviceLogin): Promise<AccessToken> {
    const endsAt = Date.now() + login.expiresInSeconds * 1000
    let intervalMs = login.intervalSeconds * 1000
    while (Date.now() < endsAt) {
      await new Promise((resolve) => setTimeout(resolve, intervalMs))
      const answer = await this.transport.send(`${this.transport.apiUrl}/oauth/token`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({
          grant_type: deviceGrant,
          client_id: clientId,
          device_code: login.deviceCode,
        }),
      })
      const body = (await answer.json().catch(() => ({}))) as Partial<Grant> & {
        error?: string
        error_description?: string
      }
      if (answer.ok && body.access_token) return tokenOf(body as Grant)
      if (body.error === 'slow_down') intervalMs += login.intervalSeconds * 1000
      else if (body.error !== 'authorization_pending') {
        throw new ClientError(answer.status, body.error_description ?? 'the login was not approved')
      }
    }
    throw new ClientError(408, 'nobody approved the login in time')
  }

  async clientCredentials(id: string, secret: string): Promise<AccessToken> {
    return tokenOf(
      await this.transport.json<Grant>('POST', '/oauth/token', {
        grant_type: 'client_credentials',
        client_id: id,
        client_secret: secret,
      }),
    )
  }
}

function tokenOf(grant: Grant): AccessToken {
  return { accessToken: grant.access_token, expiresAt: Date.now() + grant.expires_in * 1000 }
}
